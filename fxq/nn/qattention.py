"""Attention with both of its products in int8: on real values as the QDQ stage has it, and on codes.

    p = round(65535 exp(score - max score)),  y = sum(p v) / sum(p)

The exponentials are rounded before they are summed, to steps of 1/65535 (two bytes, each of which has a product with
the values), so that the result stays a mean of the values. One byte would do for evenly spread attention, and lose the
rest where it rests on one token (Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024):
what has less than a 510th of the largest weight would be zero, however many keys there are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.nn.kernels.kernel import check_codes
from fxq.nn.qdq import quantize
from fxq.nn.qoperation import QOperation, State
from fxq.quant.qparams import QParams

_STEPS = 65535
_EXACT = 2**24  # float32 holds every integer up to it


class QDQAttention(nn.Module):
    """``F.scaled_dot_product_attention``, exponentials rounded to steps of 1/65535; gradients pass straight through.

    Args:
        is_causal, scale: as the function takes them.
        p: the probability with which weights are dropped in training mode.
    """

    def __init__(self, is_causal: bool = False, scale: float | None = None, p: float = 0.0) -> None:
        super().__init__()
        self.is_causal, self.scale, self.p = bool(is_causal), scale, float(p)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(..., queries, width), (..., keys, width), (..., keys, out) -> (..., queries, out), float32.

        The mask is added to the scores, or is boolean: True lets a key through. A query without keys gets zeros.
        """
        scores = query @ key.transpose(-2, -1) * _scale(self.scale, query)
        powers = _powers(_masked(scores, attn_mask, self.is_causal))
        rounded = torch.round(powers.detach() * _STEPS) / _STEPS + (powers - powers.detach())
        total = rounded.sum(-1, keepdim=True).clamp_min(1.0)
        return F.dropout(rounded, self.p, self.training) @ value / total

    def extra_repr(self) -> str:
        return ", ".join([*_settings(self.is_causal, self.scale), *([f"p={self.p:g}"] if self.p else [])])


class QAttention(QOperation):
    """Attention of u8 codes -> u8 codes, or float32 where ``output`` is None.

        S = sum (q - z_q) (k - z_k),  s = S * (scale s_q s_k) + mask,  p = round(65535 exp(s - max s))
        y = sum p (v - z_v) * (s_v / sum p)

    Sums of products are exact integers, everything else is float32.

    Args:
        query, key, value, output: the parameters of the arguments and of the result.
        is_causal, scale: as ``F.scaled_dot_product_attention`` takes them.
    """

    qparams_names = ("query", "key", "value")

    def __init__(
        self, query: QParams, key: QParams, value: QParams, output: QParams | None, is_causal: bool = False,
        scale: float | None = None, backend: str = "reference",
    ) -> None:  # fmt: skip
        super().__init__(backend)
        self.query, self.key, self.value, self.output = query, key, value, output
        self.is_causal, self.scale = bool(is_causal), scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(..., queries, width), (..., keys, width), (..., keys, out) codes -> (..., queries, out).

        The mask is of real values, added to the scores, or boolean: True lets a key through. A query without keys gets
        zeros.
        """
        q, k = check_codes(query).float() - self.query.zero_point, check_codes(key).float() - self.key.zero_point
        v = check_codes(value).float() - self.value.zero_point
        scores = _product(q, k.transpose(-2, -1), 255) * self.factor(query.shape[-1])
        codes = torch.round(_powers(_masked(scores, attn_mask, self.is_causal)) * _STEPS)
        total = codes.sum(-1, keepdim=True).clamp_min(1.0)  # a sum is zero, or 65535 and more
        real = _product(codes, v, _STEPS) * (total.new_tensor(self.value.scale) / total)
        return real if self.output is None else quantize(real, self.output.scale, self.output.zero_point)

    def factor(self, width: int) -> float:
        """What turns an integer score into a real one, rounded to float32, of queries of ``width`` channels."""
        scale = 1.0 / math.sqrt(width) if self.scale is None else self.scale
        return float(np.float32(scale * self.query.scale * self.key.scale))

    def get_extra_state(self) -> State:
        """name -> [(scale, zero point)]; without ``output`` where the result is real."""
        state = super().get_extra_state()
        if self.output is not None:
            state["output"] = [(self.output.scale, self.output.zero_point)]
        return state

    def set_extra_state(self, state: State) -> None:
        """Take over what ``get_extra_state`` returned."""
        output = [QParams(*pair) for pair in state.get("output", [])]
        super().set_extra_state({name: numbers for name, numbers in state.items() if name != "output"})
        self.output = output[0] if output else None

    def extra_repr(self) -> str:
        output = "float32" if self.output is None else f"({self.output.scale:.6g}, {self.output.zero_point})"
        return ", ".join([super().extra_repr(), f"output={output}", *_settings(self.is_causal, self.scale)])


def _scale(given: float | None, query: Tensor) -> float:
    return 1.0 / math.sqrt(query.shape[-1]) if given is None else given


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    if causal:
        behind = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(behind, -math.inf)
    return scores


def _powers(scores: Tensor) -> Tensor:
    """``exp(score - max)`` over the keys; zeros where every key is left out."""
    most = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    return torch.exp(scores - most)


def _product(a: Tensor, b: Tensor, most: int) -> Tensor:
    """The exact product of integers in float32, rounded once; ``a`` has at most ``most`` in size, ``b`` 255."""
    if a.shape[-1] * 255 * most <= _EXACT:
        return a @ b
    return (a.double() @ b.double()).float()


def _settings(causal: bool, scale: float | None) -> list[str]:
    return [*(["is_causal"] if causal else []), *([] if scale is None else [f"scale={scale:g}"])]
