"""Training loops as people write them: autocast, gradient checkpointing, copies, checkpoints, distillation."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxq
from fxq.nn.fake_quantisers import FakeQuantise
from tests.qat.networks import images, labels, loss, prepared, residual, train

SCALES = pytest.mark.parametrize("scales", ["observed", "learned"])


def state(model: nn.Module) -> dict[str, object]:
    """Everything that a checkpoint holds, copied."""
    return copy.deepcopy(dict(model.state_dict()))


def equal(a: dict[str, object], b: dict[str, object]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k]  # type: ignore[arg-type]
        for k, v in a.items()
    )


@SCALES
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_observes_and_counts_nothing_twice(scales: str, reentrant: bool) -> None:
    plain, saving = prepared(scales=scales), prepared(scales=scales)
    for model in (plain, saving):
        model.drop.p = 0.0  # type: ignore[union-attr, assignment]
    x = images().requires_grad_()
    loss(plain(x)).backward()  # type: ignore[no-untyped-call]
    loss(checkpoint(saving, x, use_reentrant=reentrant)).backward()  # type: ignore[no-untyped-call]
    assert equal(state(plain), state(saving))
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)


@SCALES
def test_parts_may_be_checkpointed(scales: str) -> None:
    class Part(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, *args, use_reentrant=False)
            return out

    plain, saving = prepared(scales=scales), prepared(scales=scales)
    saving.conv2 = Part(saving.conv2)  # type: ignore[assignment]
    for model in (plain, saving):
        model.drop.p = 0.0  # type: ignore[union-attr, assignment]
        loss(model(images())).backward()  # type: ignore[no-untyped-call]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(
        plain.get_buffer("conv2.norm.running_var"), saving.get_buffer("conv2.inner.norm.running_var")
    )  # fmt: skip


@SCALES
def test_autocast_trains_in_bfloat16_with_parameters_and_ranges_in_float32(scales: str) -> None:
    model = prepared(scales=scales)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(images())
            value = loss(out)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(value.item())
    assert out.dtype is torch.bfloat16
    assert losses[-1] < losses[0]
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} <= {torch.float32, torch.int64, torch.int32}
    int8 = fxq.compile(model.eval(), images(), target="reference")
    with torch.no_grad():
        assert torch.equal(int8(images(1)), model(images(1)))


@SCALES
def test_copies_train_apart_and_alike(scales: str) -> None:
    first = train(prepared(scales=scales))
    second = copy.deepcopy(first)
    before = state(first)
    train(second)
    assert equal(state(first), before)
    train(first)
    assert equal(state(first), state(second))


@SCALES
def test_a_checkpoint_loads_into_a_model_prepared_alike(scales: str) -> None:
    first = train(prepared(scales=scales))
    fxq.qat.freeze_batch_norm(first)
    fxq.qat.disable_observers(first)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(9)
    second = prepared(scales=scales)
    assert not equal(state(first), state(second))
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert equal(state(first), state(second))
    train(first)
    train(second)
    assert equal(state(first), state(second))
    with torch.no_grad():
        assert torch.equal(first.eval()(images(4)), second.eval()(images(4)))


@SCALES
def test_a_state_dict_holds_tensors_alone(scales: str) -> None:
    """Averages of weights, safetensors and counts of bytes take nothing else."""
    model = train(prepared(scales=scales))
    assert {type(v) for v in model.state_dict().values()} == {Tensor}
    twin = copy.deepcopy(model)
    fxq.qat.disable_observers(model)
    twin.load_state_dict({name: value.cpu().clone() for name, value in model.state_dict().items()})
    assert equal(state(model), state(twin))


@SCALES
def test_a_pickled_model_goes_on(scales: str) -> None:
    first = train(prepared(scales=scales))
    buffer = io.BytesIO()
    torch.save(first, buffer)
    buffer.seek(0)
    second = torch.load(buffer, weights_only=False)
    train(first)
    train(second)
    assert equal(state(first), state(second))
    a, b = (fxq.compile(m.eval(), images(), target="reference") for m in (first, second))
    assert torch.equal(a(images(2)), b(images(2)))


@SCALES
def test_distillation_takes_a_prepared_student(scales: str) -> None:
    teacher, student = residual(), prepared(scales=scales)
    distillation = fxq.distill(student, teacher, alpha=0.5, hints={"conv1": "conv1"}, example_inputs=images())
    optimiser = torch.optim.SGD([*student.parameters(), *distillation.parameters()], lr=0.02)
    before = state(teacher)
    for i in range(3):
        optimiser.zero_grad()
        distillation(images(i), labels(i)).backward()
        optimiser.step()
    assert equal(state(teacher), before)
    assert all(m.seen for m in student.modules() if isinstance(m, FakeQuantise))
    assert fxq.compile(student.eval(), images())(images()).shape == (6, 5)


@SCALES
def test_every_parameter_gets_a_gradient_with_and_without_fake_quantisation(scales: str) -> None:
    model = prepared(scales=scales)
    for switch in (fxq.qat.enable_fake_quant, fxq.qat.disable_fake_quant):
        switch(model)
        model.zero_grad()
        loss(model(images())).backward()  # type: ignore[no-untyped-call]
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_learned_scales_move_and_observed_ones_follow_the_data() -> None:
    for scales in ("observed", "learned"):
        model = prepared(scales=scales)
        model(images())
        before = model.get_submodule("observers.conv1").qparams()  # type: ignore[operator]
        fxq.qat.disable_observers(model)
        train(model, lr=0.05)
        after = model.get_submodule("observers.conv1").qparams()  # type: ignore[operator]
        assert (before == after) is (scales == "observed")


def test_accumulated_gradients_need_no_special_care() -> None:
    """Two forwards before the backward: ranges and units change in between, in place."""
    for scales in ("observed", "learned"):
        model = prepared(scales=scales)
        (loss(model(images(0)), 0) + loss(model(2 * images(1)), 1)).backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None for p in model.parameters())
