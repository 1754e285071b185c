"""Switches by one call and by schedule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxq
from fxq import qat
from fxq.errors import InputError
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.nn.trainable import TrainableLayer
from tests.qat.networks import images, prepared, residual, train


def states(model: nn.Module) -> tuple[set[bool], set[bool], set[bool]]:
    """Of all parts: observing, quantising, frozen."""
    modules = list(model.modules())
    return (
        {m.active for m in modules if isinstance(m, FakeQuantise)},
        {bool(m.quantising) for m in modules if hasattr(m, "quantising")},
        {m.frozen for m in modules if isinstance(m, TrainableLayer)},
    )


def ranges(model: nn.Module) -> list[tuple[float, float]]:
    return [m.qparams().range for m in model.modules() if isinstance(m, FakeQuantise)]


def test_each_switch_does_what_it_says() -> None:
    model = prepared()
    assert states(model) == ({True}, {True}, {False})
    qat.disable_observers(model)
    qat.disable_fake_quant(model)
    qat.freeze_batch_norm(model)
    assert states(model) == ({False}, {False}, {True})
    qat.enable_observers(model)
    qat.enable_fake_quant(model)
    qat.unfreeze_batch_norm(model)
    assert states(model) == ({True}, {True}, {False})


def test_observers_that_are_off_leave_the_ranges_alone() -> None:
    model = train(prepared())
    before = ranges(model)
    qat.disable_observers(model)
    train(model, batch=lambda i: 3 * images(i))
    assert ranges(model) == before
    qat.enable_observers(model)
    train(model, batch=lambda i: 3 * images(i))
    assert all(new != old for new, old in zip(ranges(model), before, strict=True))


def test_frozen_batch_norms_keep_their_statistics_through_train_and_eval() -> None:
    model = train(prepared())
    qat.freeze_batch_norm(model)
    before = {n: b.clone() for n, b in model.named_buffers() if "norm" in n}
    gamma = model.get_parameter("conv1.norm.weight").clone()
    train(model.eval().train())
    assert all(torch.equal(model.get_buffer(n), b) for n, b in before.items())
    assert not torch.equal(model.get_parameter("conv1.norm.weight"), gamma)


def test_modes_follow_train_and_eval() -> None:
    model = train(prepared())
    before = copy.deepcopy(model.state_dict())
    model.eval()
    with torch.no_grad():
        first, second = model(images(5)), model(images(5))
    assert torch.equal(first, second)
    assert all(str(v) == str(before[k]) for k, v in model.state_dict().items())
    model.train()
    assert not torch.equal(model(images(5)), model(images(5)))  # dropout, and other ranges


def test_a_schedule_switches_at_its_steps() -> None:
    model = prepared()
    schedule = qat.Schedule(model, fake_quant=2, freeze_observers=4, freeze_batch_norm=3)
    seen = [states(model)]
    train(model, 5, each=lambda: (schedule.step(), seen.append(states(model))))
    assert [next(iter(s[1])) for s in seen] == [False, False, True, True, True, True]
    assert [next(iter(s[0])) for s in seen] == [True, True, True, True, False, False]
    assert [next(iter(s[2])) for s in seen] == [False, False, False, True, True, True]


def test_the_first_step_is_set_at_construction() -> None:
    model = prepared()
    qat.Schedule(model, freeze_observers=0, freeze_batch_norm=0)
    assert states(model) == ({False}, {True}, {True})
    qat.Schedule(model)
    assert states(model) == ({True}, {True}, {False})


def test_a_schedule_goes_on_from_a_checkpoint() -> None:
    model = prepared()
    schedule = qat.Schedule(model, fake_quant=2, freeze_observers=3)
    train(model, 3, each=schedule.step)
    other = prepared()
    resumed = qat.Schedule(other, fake_quant=2, freeze_observers=3)
    resumed.load_state_dict(schedule.state_dict())
    assert states(other) == states(model) == ({False}, {True}, {False})
    assert resumed.steps == 3


def test_learned_parameters_are_those_of_the_scales() -> None:
    model = prepared(scales="learned")
    learned = qat.learned_parameters(model)
    named = {id(p): n for n, p in model.named_parameters()}
    names = {named[id(p)] for p in learned}
    assert names == {n for n in named.values() if n.endswith((".step", ".offset"))}
    assert len(names) == 4 * 2 + 3
    assert qat.learned_parameters(prepared()) == []


@pytest.mark.parametrize("value", [-1, 1.5, True, "3"])
def test_bad_steps(value: object) -> None:
    with pytest.raises(InputError, match=r"freeze_observers is .*(.|\n)*number of a step"):
        qat.Schedule(prepared(), freeze_observers=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "switch",
    [qat.enable_observers, qat.disable_fake_quant, qat.freeze_batch_norm, qat.learned_parameters, qat.Schedule],
)
def test_a_model_that_was_not_prepared_is_an_error(switch: object) -> None:
    with pytest.raises(InputError, match=r"a Residual has no fake quantisers(.|\n)*fxq.prepare_qat returned"):
        switch(residual())  # type: ignore[operator]
    assert not qat.is_prepared(residual())
    assert qat.is_prepared(nn.Sequential(prepared()))
    assert fxq.qat is qat
