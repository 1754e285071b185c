"""Attention of codes against integers in numpy, and its float form of the QDQ stage against both."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import InputError
from fxq.nn import QAttention, QDQAttention, dequantize, quantize
from fxq.quant.qparams import QParams
from tests.nn.naive import codes

_Q, _K, _V, _Y = QParams(0.021, 120), QParams(0.019, 131), QParams(0.013, 90), QParams(0.007, 115)
_QUERIES, _KEYS, _WIDTH = (2, 3, 6, 8), (2, 3, 9, 8), (2, 3, 9, 5)


def _operands() -> tuple[Tensor, Tensor, Tensor]:
    return codes(_QUERIES, 0), codes(_KEYS, 1), codes(_WIDTH, 2)


def _sqnr(wanted: Tensor, got: Tensor) -> float:
    return float(10 * torch.log10(wanted.pow(2).mean() / (wanted - got).pow(2).mean()))


def _masks() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(2, 1, 6, 9, generator=generator)
    real[0, 0, 2] = -torch.inf  # a query without keys
    return {
        "none": None,
        "real": real,
        "of keys": real[:, :, :1],
        "boolean": real > 0,
        "lowest": (real < 0) * torch.finfo(torch.float32).min,
    }


def _expected(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Query by query: integers, then float32 in the order that the docstring states."""
    found = np.zeros((*q.shape[:3], v.shape[3]), np.float32)
    factor = np.float32(scale * _Q.scale * _K.scale)
    for n, head, query in np.ndindex(*q.shape[:3]):
        row = q[n, head, query].numpy().astype(np.int64) - _Q.zero_point
        sums = (k[n, head].numpy().astype(np.int64) - _K.zero_point) @ row
        scores = sums.astype(np.float32) * factor
        if mask is not None:
            given = mask.expand(2, 3, 6, 9)[n, head, query].numpy()
            scores = np.where(given, scores, -np.inf) if mask.dtype == torch.bool else scores + given
        if causal:
            scores[query + 1 :] = -np.inf
        most = np.float32(max(scores.max(), np.finfo(np.float32).min))
        powers = np.rint(torch.exp(torch.from_numpy(scores - most)).numpy() * np.float32(65535)).astype(np.int64)
        if powers.sum():
            mixed = powers @ (v[n, head].numpy().astype(np.int64) - _V.zero_point)
            found[n, head, query] = mixed.astype(np.float32) * (np.float32(_V.scale) / np.float32(powers.sum()))
    return torch.from_numpy(found)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", _masks())
def test_codes_are_computed_as_integers(name: str, causal: bool) -> None:
    q, k, v = _operands()
    mask = _masks()[name]
    wanted = _expected(q, k, v, mask, causal, 1 / math.sqrt(8))
    real = QAttention(_Q, _K, _V, None, causal)(q, k, v, mask)
    assert torch.equal(real, wanted)
    assert torch.equal(QAttention(_Q, _K, _V, _Y, causal)(q, k, v, mask), quantize(wanted, _Y.scale, _Y.zero_point))


def test_a_scale_of_its_own() -> None:
    q, k, v = _operands()
    assert torch.equal(QAttention(_Q, _K, _V, None, scale=0.5)(q, k, v), _expected(q, k, v, None, False, 0.5))


def test_sums_beyond_24_bits_are_exact() -> None:
    """600 products of 255 * 255, of which float32 alone would lose the last bits."""
    ends = QParams(1e-5, 0)
    q, k, v = torch.full((1, 1, 1, 601), 255), torch.full((1, 1, 2, 601), 255), torch.tensor([[[[255.0], [0.0]]]])
    k[0, 0, 1, 0] = 254
    sums = torch.tensor([601 * 255 * 255, 601 * 255 * 255 - 255]).float() * np.float32(1e-5 * 1e-5 * 1e3)
    powers = (torch.exp(sums - sums.max()) * 65535).round()
    got = QAttention(ends, ends, QParams(1.0, 0), None, scale=1e3)(*(t.to(torch.uint8) for t in (q, k, v)))
    assert got.item() == pytest.approx((powers[0] * 255 / powers.sum()).item(), rel=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", _masks())
def test_the_float_form_gives_the_same_codes(name: str, causal: bool) -> None:
    q, k, v = _operands()
    mask = _masks()[name]
    real = (dequantize(x, p.scale, p.zero_point) for x, p in zip((q, k, v), (_Q, _K, _V), strict=True))
    got = quantize(QDQAttention(causal)(*real, mask), _Y.scale, _Y.zero_point)
    apart = (got.int() - QAttention(_Q, _K, _V, _Y, causal)(q, k, v, mask).int()).abs()
    assert int(apart.max()) <= 1
    assert int((apart > 0).sum()) <= 1


def test_the_float_form_is_close_to_attention_and_gives_zeros_without_keys() -> None:
    q, k, v = torch.randn(2, 3, 6, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 5)
    wanted = F.scaled_dot_product_attention(q, k, v)
    assert 80 < _sqnr(wanted, QDQAttention()(q, k, v)) < 120
    assert not QDQAttention()(q, k, v, torch.full((6, 9), -torch.inf)).any()


def test_attention_that_rests_on_one_token_keeps_the_others() -> None:
    """The first key has 19 times the weight of all others together, and a value of nothing."""
    torch.manual_seed(0)
    q, k, v = torch.ones(1, 1, 4, 8), torch.randn(1, 1, 200, 8) / 8, torch.randn(1, 1, 200, 5)
    k[:, :, 0], v[:, :, 0] = 23.5 / 8, 0
    wanted = F.scaled_dot_product_attention(q, k, v)
    weights = (q @ k.transpose(2, 3) / math.sqrt(8)).softmax(-1)
    assert weights[..., 0].min() > 0.95
    assert _sqnr(wanted, QDQAttention()(q, k, v)) > 30


def test_gradients_pass_the_rounding() -> None:
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    weight = torch.randn(1, 2, 4, 8)
    rounded = torch.autograd.grad((QDQAttention()(q, k, v) * weight).sum(), (q, k, v))
    exact = torch.autograd.grad((F.scaled_dot_product_attention(q, k, v) * weight).sum(), (q, k, v))
    for a, b in zip(rounded, exact, strict=True):
        assert torch.allclose(a, b, atol=0.02 * float(b.abs().max()))


def test_weights_drop_out_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 3, 5, 4)
    attention = QDQAttention(p=0.5)
    assert not torch.equal(attention(q, q, q), attention(q, q, q))
    assert torch.equal(attention.eval()(q, q, q), QDQAttention()(q, q, q))


def test_what_is_no_code_is_refused() -> None:
    q, k, v = _operands()
    with pytest.raises(InputError, match="takes uint8 codes"):
        QAttention(_Q, _K, _V, _Y)(q.float(), k, v)
