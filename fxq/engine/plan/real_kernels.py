"""The operations on real values, and attention, in numpy. Exponentials differ from the engine's in the last bits."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from fxq.engine.abi import Code, Type
from fxq.engine.plan.arithmetic import Array, Arrays, Values, activated, codes_of, given, inner
from fxq.engine.plan.operations import Operation, Slot, Value

_F32 = np.float32


def _real(o: Operation, values: Values, arrays: Arrays, i: int) -> Array:
    value, x = given(values, arrays, i)
    found = inner(x, value).astype(_F32)
    if value.type is Type.U8:
        found = (found - _F32(o.int_at(Slot.ZERO_A + i))) * _F32(o.float_at(i))
    return found


def _finished(o: Operation, v: Array, target: Value) -> Array:
    return codes_of(o, v * _F32(o.float_at(2)) if target.type is Type.U8 else v, target)


def binary(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_ADD, FXQ_MUL, FXQ_ADD_F32."""
    operands = [_real(o, values, arrays, i) for i in range(2) if values[i] is not None]
    if len(operands) < 2:
        constant = constants[0]
        assert constant is not None
        operands.append(constant.reshape(1, o.int_at(0), o.int_at(1), o.int_at(2)))
    if len(operands) < 2:
        operands.append(np.zeros((count, target.height, target.width, target.channels), _F32))
    v = operands[0] * operands[1] if o.code is Code.MUL else operands[0] + operands[1]
    return _finished(o, activated(o, v.astype(_F32)), target)


def unary(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_UNARY_F32."""
    return _finished(o, activated(o, _real(o, values, arrays, 0)), target)


def layer_norm(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_LAYER_NORM."""
    x = torch.from_numpy(_real(o, values, arrays, 0))
    weight, bias = (None if c is None else torch.from_numpy(c) for c in (*constants, None)[:2])
    return _finished(o, F.layer_norm(x, (x.shape[-1],), weight, bias, o.float_at(0)).numpy(), target)


def rms_norm(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_RMS_NORM."""
    x = torch.from_numpy(_real(o, values, arrays, 0))
    assert constants[0] is not None
    return _finished(o, F.rms_norm(x, (x.shape[-1],), torch.from_numpy(constants[0]), o.float_at(0)).numpy(), target)


def softmax(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_SOFTMAX."""
    return _finished(o, torch.softmax(torch.from_numpy(_real(o, values, arrays, 0)), -1).numpy(), target)


def bilinear(o: Operation, values: Values, arrays: Arrays, rows: Array, columns: Array, target: Value) -> Array:
    """FXQ_RESIZE, bilinear, of float32. Tables: pairs (first, weight of the next one)."""
    found = _real(o, values, arrays, 0)
    for axis, table, shape in ((2, columns, (-1, 1)), (1, rows, (-1, 1, 1))):
        a = found.take(table["first"], axis)
        b = found.take(np.minimum(table["first"] + 1, found.shape[axis] - 1), axis)
        # in float64: the product is exact, as in a fused multiply-add
        found = (table["weight"].reshape(shape).astype(np.float64) * (b - a) + a).astype(_F32)
    return _finished(o, found, target)


def attention(o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int) -> Array:
    """FXQ_ATTENTION."""
    q, k, v = (_by_heads(o, torch.from_numpy(_real(o, values, arrays, i)), count) for i in range(3))
    scores = _masked(o, q @ k.transpose(2, 3) * o.float_at(0), values, arrays, constants)
    return _finished(o, _by_tokens(torch.softmax(scores, -1).nan_to_num(0.0) @ v, target, count), target)


def code_attention(
    o: Operation, values: Values, arrays: Arrays, constants: Arrays, target: Value, count: int
) -> Array:  # fmt: skip
    """FXQ_ATTENTION_U8."""
    found = []
    for i in range(3):
        value, x = given(values, arrays, i)
        centred = inner(x, value).astype(np.float64) - o.int_at(2 + i)
        found.append(_by_heads(o, torch.from_numpy(centred), count))
    q, k, v = found
    scores = _masked(o, (q @ k.transpose(2, 3)).float() * o.float_at(0), values, arrays, constants)
    powers = torch.exp(scores - scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min))
    codes = torch.round(powers * 65535)
    total = codes.sum(-1, keepdim=True)
    mean = torch.where(total > 0, torch.tensor(o.float_at(1)) / total, 0.0)
    return _finished(o, _by_tokens((codes.double() @ v).float() * mean, target, count), target)


def _by_heads(o: Operation, x: torch.Tensor, count: int) -> torch.Tensor:
    heads = o.int_at(0)
    return x.reshape(count, -1, heads, x.shape[3] // heads).transpose(1, 2)


def _by_tokens(x: torch.Tensor, target: Value, count: int) -> Array:
    found: Array = x.transpose(1, 2).reshape(count, 1, -1, target.channels).numpy()
    return found


def _masked(o: Operation, scores: torch.Tensor, values: Values, arrays: Arrays, constants: Arrays) -> torch.Tensor:
    if len(values) > 3 and values[3] is not None:
        scores = scores + torch.from_numpy(inner(given(values, arrays, 3)[1], values[3]).copy())
    if constants and constants[0] is not None:
        scores = scores + torch.from_numpy(constants[0].copy()).reshape(1, o.int_at(5), o.int_at(6), -1)
    return scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -math.inf) if o.int_at(1) else scores
