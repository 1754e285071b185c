"""The modules that fake-quantise: what they observe, learn, switch and keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError
from fxq.nn.fake_quant import fake_quantise, learned_fake_quantise, learned_fake_quantise_weight
from fxq.nn.fake_quantisers import LEAST_STEP, FakeQuantise, LearnedFakeQuantise, codes_of, in_units, power_of_two
from fxq.nn.weight_fake_quantisers import LearnedWeightFakeQuantise, WeightFakeQuantise
from fxq.quant.options import Options
from fxq.quant.qparams import QParams, dequantize_weight, quantize_weight

BOTH = pytest.mark.parametrize("cls", [FakeQuantise, LearnedFakeQuantise])


def ramp(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 101).view(1, -1)


def test_ranges_follow_a_moving_average_that_starts_at_the_first_batch() -> None:
    q = FakeQuantise("x", momentum=0.25)
    q(ramp(-1.0, 3.0))
    assert (q.minimum.item(), q.maximum.item()) == (-1.0, 3.0)
    q(ramp(-2.0, 7.0))
    assert (q.minimum.item(), q.maximum.item()) == (-1.25, 4.0)
    assert q.qparams() == QParams.from_range(-1.25, 4.0)
    q(ramp(5.0, 8.0))  # a range contains zero
    assert (q.minimum.item(), q.maximum.item()) == (-0.9375, 5.0)


@BOTH
def test_eval_mode_observes_nothing_and_an_unseen_value_passes(cls: type[FakeQuantise]) -> None:
    q = cls("x").eval()
    x = ramp(-1.0, 1.0)
    assert torch.equal(q(x), x)
    assert not q.seen
    with pytest.raises(CalibrationError, match=r"never observed(.|\n)*`x`(.|\n)*no batch in training mode"):
        cls("`x`").qparams()
    q.train()(x)
    assert q.seen
    before = copy.deepcopy(q.state_dict())
    q.eval()(ramp(-9.0, 9.0))
    assert str(q.state_dict()) == str(before)


@BOTH
def test_switches(cls: type[FakeQuantise]) -> None:
    q, x = cls("x"), ramp(-1.0, 1.0)
    q.active = False
    assert torch.equal(q(x), x)
    assert not q.seen
    q.active = True
    q(x)
    q.active, q.quantising = False, False
    assert torch.equal(q(x * 3), x * 3)
    assert q.qparams() == QParams.from_range(-1.0, 1.0)
    q.quantising = True
    assert not torch.equal(q(x), x)


def test_values_that_share_a_module_have_averages_of_their_own_and_one_range() -> None:
    q = FakeQuantise("x", momentum=0.5, sites=2)
    for _ in range(2):
        q(ramp(0.0, 1.0))
        q(ramp(-4.0, 8.0), 1)
    assert q.maximum.tolist() == [1.0, 8.0]
    assert q.qparams() == QParams.from_range(-4.0, 8.0)
    learned = LearnedFakeQuantise("x", sites=2)
    learned(ramp(0.0, 1.0))
    learned(ramp(-4.0, 8.0), 1)
    assert learned.qparams() == QParams.from_range(-4.0, 8.0)


@BOTH
def test_buffers_stay_the_same_tensors(cls: type[FakeQuantise]) -> None:
    q = cls("x")
    before = dict(q.named_buffers())
    q(ramp(-1.0, 2.0))
    q(ramp(-3.0, 2.0))
    assert all(before[name] is buffer for name, buffer in q.named_buffers())


@BOTH
def test_a_value_that_is_not_finite_names_the_layer(cls: type[FakeQuantise]) -> None:
    x = ramp(-1.0, 1.0)
    x[0, 3] = float("nan")
    with pytest.raises(CalibrationError, match=r"NaN or infinite(.|\n)*`conv1`"):
        cls("`conv1`")(x)


@BOTH
def test_state_loads_into_a_fresh_module(cls: type[FakeQuantise]) -> None:
    q, x = cls("x", sites=2), ramp(-1.0, 2.0)
    q(x)
    q(x * 2, 1)
    q.active = False
    other = cls("x", sites=2)
    other.load_state_dict(q.state_dict())
    assert (other.active, other.seen, other.qparams()) == (False, True, q.qparams())
    assert torch.equal(other(x), q(x))


def test_results_of_eval_mode_say_which_codes_they_stand_for() -> None:
    q = FakeQuantise("x")
    x = ramp(-1.0, 2.0)
    assert codes_of(q(x)) is None
    q.eval()
    with torch.no_grad():
        assert codes_of(q(x)) == q.qparams()
    assert codes_of(x) is None


def test_a_learned_range_starts_with_the_first_batch_and_moves_with_the_optimiser_alone() -> None:
    q = LearnedFakeQuantise("x")
    q(ramp(-1.0, 3.0))
    q(ramp(-9.0, 9.0))
    assert q.qparams() == QParams.from_range(-1.0, 3.0)
    assert 1.0 <= q.step.item() < 2.0
    with torch.no_grad():
        q.step.mul_(1.5)
    assert q.qparams().scale == pytest.approx(1.5 * QParams.from_range(-1.0, 3.0).scale)


def test_a_step_of_sgd_moves_the_scale_as_that_of_lsq_does() -> None:
    x, upstream = ramp(-1.0, 6.0), ramp(-0.3, 0.7)
    q = LearnedFakeQuantise("x")
    q.set_range(-0.5, 2.5)
    start = q.qparams()
    scale = torch.tensor([start.scale], requires_grad=True)
    lower = torch.tensor([-start.zero_point * start.scale], requires_grad=True)
    learned_fake_quantise(x, scale, lower).backward(upstream)
    torch.optim.SGD([scale, lower], lr=1e-4).step()
    q(x).backward(upstream)
    torch.optim.SGD(q.parameters(), lr=1e-4).step()
    moved, end = q.learned()
    torch.testing.assert_close(moved, scale)
    torch.testing.assert_close(end, lower)
    assert abs(moved.item() / start.scale - 1) > 1e-2


def test_a_range_that_begins_at_zero_keeps_its_zero_point() -> None:
    q = LearnedFakeQuantise("x")
    q(ramp(0.0, 2.0))
    q(ramp(0.0, 4.0)).sum().backward()
    assert q.offset.grad is not None
    assert q.offset.grad.item() == 0.0
    assert q.step.grad is not None
    assert q.step.grad.item() != 0.0
    assert q.qparams().zero_point == 0


@pytest.mark.parametrize("value", [-0.7, 0.0, 1e-9])
def test_a_learned_scale_that_turns_negative_is_put_back(value: float) -> None:
    q, x = LearnedFakeQuantise("x"), ramp(-1.0, 1.0)
    q(x)
    with torch.no_grad():
        q.step.fill_(value)
    assert q.eval().qparams().scale == LEAST_STEP * q.unit.item()
    assert q.step.item() == torch.tensor(value).item()  # eval mode changes nothing
    out = q.train()(x)
    assert q.step.item() == LEAST_STEP
    assert q.qparams().scale == LEAST_STEP * q.unit.item()
    assert bool(out.isfinite().all())
    out.sum().backward()
    assert bool(q.step.grad.isfinite())  # type: ignore[union-attr]
    w = LearnedWeightFakeQuantise(Options(), torch.randn(3, 4), label="fc")
    with torch.no_grad():
        w.step[1] = value
    assert bool((w.scales(torch.randn(3, 4)) > 0).all())
    assert w.step[1].item() == LEAST_STEP


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_learned_scale_that_is_not_finite_is_an_error(value: float) -> None:
    q, x = LearnedFakeQuantise("`conv1`"), ramp(-1.0, 1.0)
    q(x)
    with torch.no_grad():
        q.step.fill_(value)
    for call in (lambda: q(x), q.qparams):
        with pytest.raises(InputError, match=r"learned scale is NaN or infinite(.|\n)*`conv1`(.|\n)*learning rate"):
            call()
    w = LearnedWeightFakeQuantise(Options(), torch.randn(3, 4), label="`fc`")
    with torch.no_grad():
        w.step[2] = value
    with pytest.raises(InputError, match=r"learned scale is NaN or infinite(.|\n)*`fc`"):
        w(torch.randn(3, 4))


def test_switched_off_the_learned_parameters_get_zero_gradients() -> None:
    q, w = LearnedFakeQuantise("x"), LearnedWeightFakeQuantise(Options(), torch.randn(3, 4))
    q.quantising = False
    x = ramp(-1.0, 1.0).requires_grad_()
    (q(x).sum() + w.pass_on(torch.randn(3, 4)).sum()).backward()
    assert [p.grad.abs().sum().item() for p in (*q.parameters(), *w.parameters())] == [0.0] * 3  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [Options(), Options(weight="per_tensor"), Options(weight_range="mse")])
@pytest.mark.parametrize("learned", [False, True])
def test_weights_are_what_the_recipe_makes_of_them(options: Options, learned: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(6, 2, 3, 3)
    rows[2] = 0.0
    q = LearnedWeightFakeQuantise(options, rows) if learned else WeightFakeQuantise(options)
    scale = options.weight_scale(rows.flatten(1))
    assert torch.equal(q.scales(rows), scale)
    assert torch.equal(q(rows), dequantize_weight(*quantize_weight(rows, 0, scale)))


def test_learned_scales_of_channels_follow_the_folded_batch_norm() -> None:
    torch.manual_seed(0)
    rows, gain = torch.randn(4, 9), torch.tensor([0.5, 2.0, 1e-9, 3.0])
    q = LearnedWeightFakeQuantise(Options(), rows, gain)
    torch.testing.assert_close(q.scales(rows), rows.abs().amax(1) / 127)
    torch.testing.assert_close(q.scales(rows, gain * 7), rows.abs().amax(1) / 127 * gain * 7)


def test_a_power_of_two_is_the_largest_that_is_not_above() -> None:
    scales = torch.tensor([1.0, 0.3, 0.5, 1e-6, 5.0])
    units = power_of_two(scales)
    assert units[:3].tolist() == [1.0, 0.25, 0.5]
    assert bool(((scales / units >= 1.0) & (scales / units < 2.0)).all())


def test_gradients_in_units() -> None:
    p = nn.Parameter(torch.tensor([1.5]))
    in_units(p, torch.tensor([0.25])).backward()
    assert p.grad is not None
    assert p.grad.item() == 4.0


def test_fake_quantisers_agree_with_their_functions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 50)
    q = FakeQuantise("x")
    assert torch.equal(q(x), fake_quantise(x, q.scale, q.zero_point))
    w = LearnedWeightFakeQuantise(Options(), x)
    assert torch.equal(w(x), learned_fake_quantise_weight(x, w.scales(x)))
    assert "learned" in repr(w)
    assert "scale=" in repr(q)
