from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxq.errors import InputError
from fxq.nn.weight_only import GROUP_SIZES, Weight4Linear, Weight8Linear
from fxq.quant.groups import dequantize_groups, pack_nibbles, quantize_groups, unpack_nibbles


def _layer(inputs: int = 256, outputs: int = 48, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias)


def _made(bits: int, layer: nn.Linear) -> Weight8Linear | Weight4Linear:
    return Weight8Linear.from_layer(layer) if bits == 8 else Weight4Linear.from_layer(layer, 64)


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("shape", [(256,), (1, 256), (2, 2, 256), (3, 5, 256), (0, 256)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_computes_the_dequantised_layer(bits: int, shape: tuple[int, ...], bias: bool) -> None:
    made = _made(bits, _layer(bias=bias))
    x = torch.randn(shape)
    expected = F.linear(x, made.dequantized_weight(), made.bias)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "worst"), [(8, 0.01), (4, 0.12)])
def test_the_weight_is_near_the_original(bits: int, worst: float) -> None:
    layer = _layer()
    assert _relative(_made(bits, layer).dequantized_weight(), layer.weight.detach()) < worst


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_half_precision_out(bits: int, dtype: torch.dtype) -> None:
    made = _made(bits, _layer())
    x = torch.randn(4, 256)
    y = made(x.to(dtype))
    assert y.dtype is dtype
    assert _relative(y, made(x)) < 0.02
    assert made.to(dtype).weight_scale.dtype is torch.float32


@pytest.mark.parametrize("outputs", [5, 20])
def test_outputs_that_the_int4_kernel_does_not_take(outputs: int) -> None:
    made = Weight4Linear.from_layer(_layer(64, outputs), 32)
    x = torch.randn(3, 64)
    torch.testing.assert_close(made(x), F.linear(x, made.dequantized_weight(), made.bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("real_first", [True, False])
def test_fake_tensors_and_real_ones_in_turn(bits: int, real_first: bool) -> None:
    made, x = _made(bits, _layer()), torch.randn(2, 256)
    expected = F.linear(x, made.dequantized_weight(), made.bias)
    if real_first:
        made(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert made(mode.from_tensor(x)).shape == (2, 48)
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_many_rows_and_gradients(bits: int) -> None:
    made = _made(bits, _layer())
    for rows in (5, 128, 129, 300):
        x = torch.randn(rows, 256, requires_grad=True)
        expected = F.linear(x, made.dequantized_weight(), made.bias)
        torch.testing.assert_close(made(x.detach()), expected.detach(), rtol=1e-5, atol=1e-5)
        (own,), (wanted,) = torch.autograd.grad(made(x).sum(), x), torch.autograd.grad(expected.sum(), x)
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_packed_is_no_state(bits: int) -> None:
    made = _made(bits, _layer())
    before = list(made.state_dict())
    made(torch.randn(2, 256))
    assert list(made.state_dict()) == before


@pytest.mark.parametrize("bits", [8, 4])
def test_copies_pickles_and_state_dicts(bits: int) -> None:
    made, x = _made(bits, _layer()), torch.randn(2, 256)
    y = made(x)
    assert torch.equal(copy.deepcopy(made)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(made))(x), y)
    torch.manual_seed(1)
    other = _made(bits, nn.Linear(256, 48))
    assert not torch.equal(other(x), y)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(x), y)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_layer_is_left_alone_and_memory_is_saved(bits: int) -> None:
    layer = _layer(1024, 64, bias=False)
    before = layer.weight.detach().clone()
    made = _made(bits, layer)
    assert torch.equal(layer.weight, before)
    stored = sum(b.numel() * b.element_size() for b in made.buffers())
    assert stored < layer.weight.numel() * (1.1 if bits == 8 else 0.64)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_codes_of_groups_against_a_loop(group_size: int) -> None:
    weight = torch.randn(3, 512)
    weight[1, :group_size] = 0.25
    codes, scale, offset = quantize_groups(weight, group_size)
    for row in range(3):
        for g in range(512 // group_size):
            part = weight[row, g * group_size : (g + 1) * group_size]
            step = float(part.max() - part.min()) / 15 or 1.0
            assert float(scale[row, g]) == pytest.approx(step, rel=1e-6)
            back = (codes[row, g * group_size : (g + 1) * group_size].float() - 8) * scale[row, g] + offset[row, g]
            assert float((back - part).abs().max()) <= step / 2 * 1.001 + 1e-6
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)
    assert dequantize_groups(codes, scale, offset).shape == weight.shape


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="100 inputs are not a multiple of 64"):
        Weight4Linear.from_layer(_layer(100), 64)
    with pytest.raises(InputError, match="NaN or infinity"):
        quantize_groups(torch.full((2, 32), float("nan")), 32)
