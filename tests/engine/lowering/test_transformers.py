"""Whole encoder blocks: attention on slices of one projection, sums as residuals, quantisation inside of norms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.transformer import VisionTransformer
from fxq.engine.abi import Code
from fxq.nn.qlayer import QLayer
from tests.engine.lowering.graphs import check, int8, planned


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_vision_transformer_is_one_plan() -> None:
    torch.manual_seed(0)
    gm = int8(VisionTransformer(depth=2), images(2))
    plan = check(gm, images(3), exact=False)
    codes = [o.code for o in plan.operations]
    assert codes.count(Code.ATTENTION) == 2
    assert codes.count(Code.CONV) == sum(isinstance(m, QLayer) for m in gm.modules())
    assert codes.count(Code.QUANTISE) == 1  # of the class token alone, which one norm of all tokens gives
    assert Code.DEQUANTISE not in codes


class Masked(nn.Module):
    """Self-attention with an additive mask that comes in, and a causal one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = F.scaled_dot_product_attention(y, k, v, is_causal=True, scale=0.3)
        z: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return z


def test_masks() -> None:
    x, mask = torch.randn(3, 6, 16), torch.zeros(3, 1, 1, 6)
    mask[:, :, :, 4:] = -10.0
    check(int8(Masked(), x, mask), x, mask, exact=False)


def test_attention_of_codes() -> None:
    x, mask = torch.randn(3, 40, 16), torch.zeros(3, 1, 1, 40)
    mask[:, :, :, 33:] = -10.0
    plan = check(int8(Masked(), x, mask), x, mask, exact=False)
    found = [o.code for o in plan.operations]
    assert found.count(Code.ATTENTION_U8) == 2
    assert Code.ATTENTION not in found
    assert Code.QUANTISE not in found  # projections give codes, and take what attention gives


def test_a_sum_is_the_residual_of_the_layer_in_front() -> None:
    x, mask = torch.randn(3, 6, 16), torch.zeros(3, 1, 1, 6)
    plan = planned(int8(Masked(), x, mask), x, mask)
    assert Code.ADD_F32 not in [o.code for o in plan.operations]
    last = plan.operations[-2]
    assert (last.code, last.int_at(13)) == (Code.CONV, 2)


class Shaped(nn.Module):
    """Reads nothing but the shape of one of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)).reshape(like.shape[0], like.shape[1], 8))
        return y


def test_an_input_of_which_the_shape_alone_is_read() -> None:
    x, like = torch.randn(3, 5, 12), torch.randn(3, 5, 4)
    check(int8(Shaped(), x, like), x, like)


class RootMeanSquare(nn.Module):
    """A block of a language model: a norm by the root mean square, and a gate."""

    def __init__(self, eps: float | None) -> None:
        super().__init__()
        self.norm, self.up, self.gate = nn.RMSNorm(24, eps), nn.Linear(24, 40), nn.Linear(24, 40)
        self.down = nn.Linear(40, 24)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        z: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return z


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_a_root_mean_square_norm(eps: float | None) -> None:
    x = torch.randn(3, 6, 24)
    plan = check(int8(RootMeanSquare(eps), x), x, exact=False)
    assert [o.code for o in plan.operations].count(Code.RMS_NORM) == 1
    assert Code.QUANTISE not in [o.code for o in plan.operations]
