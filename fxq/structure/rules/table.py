"""Which rule describes which operation of fxq's table."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.names import DROPOUT_FUNCTIONS, function_name, redefined
from fxq.ir.ops import CONV_TRANSPOSES, CONVS, DROPOUTS, STATEFUL_MODULES, Kind
from fxq.ir.shapes import recorded_value
from fxq.nn import windows as fxq_windows
from fxq.structure.analysis import Analysis, Value
from fxq.structure.rules import elementwise, layers, moves, products, recurrent, repeats, windows
from fxq.structure.rules.einsum import einsum

Rule = Callable[[Analysis, OpCall], Value]

_UNARY = (
    "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "leaky_relu", "sigmoid", "tanh", "hardsigmoid", "mish",
    "elu", "softplus", "clamp", "neg", "abs", "sqrt", "exp", "contiguous", *DROPOUTS,
)  # fmt: skip
_POOLS = tuple(
    f"{kind}{n}d" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool") for n in (1, 2, 3)
)

RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys((*CONVS, *CONV_TRANSPOSES), layers.convolution),
    "linear": layers.linear,
    "embedding": layers.embedding,
    "batch_norm": layers.batch_norm,
    "instance_norm": layers.batch_norm,
    "group_norm": layers.group_norm,
    "layer_norm": layers.layer_norm,
    "rms_norm": layers.layer_norm,
    "prelu": layers.prelu,
    **dict.fromkeys(("lstm", "gru", "rnn"), recurrent.recurrent),
    **dict.fromkeys(_UNARY, elementwise.unary),
    **dict.fromkeys(("add", "sub", "mul", "div"), elementwise.elementwise),
    **dict.fromkeys(("softmax", "log_softmax"), elementwise.over_dim),
    "mean": elementwise.mean,
    **dict.fromkeys((*_POOLS, "interpolate"), elementwise.pool),
    "cat": elementwise.cat,
    "stack": elementwise.stack,
    "matmul": products.matmul,
    "attention": products.attention,
    **dict.fromkeys(("reshape", "flatten", "unflatten"), moves.reshaped),
    "squeeze": moves.squeezed,
    "unsqueeze": moves.unsqueezed,
    "permute": moves.permuted,
    "transpose": moves.transposed,
    **dict.fromkeys(("split", "chunk"), moves.cut),
    "unbind": moves.unbound,
    "getitem": moves.getitem,
    "pad": moves.padded,
    "pixel_shuffle": moves.pixel_shuffled,
    "pixel_unshuffle": moves.pixel_unshuffled,
}

#: Operations that fxq's table lacks, by what names them there.
OTHERS: Final[Mapping[Kind, Rule]] = {
    "method:expand": moves.expanded,
    "method:expand_as": elementwise.elementwise,
    "method:t": moves.turned,
    torch.t: moves.turned,
    torch.sum: elementwise.total,
    "method:sum": elementwise.total,
    torch.roll: moves.rolled,
    "method:roll": moves.rolled,
    **dict.fromkeys((torch.flip, "method:flip"), repeats.flipped),
    **dict.fromkeys((torch.repeat_interleave, "method:repeat_interleave"), repeats.repeated_each),
    **dict.fromkeys((torch.tile, "method:tile", "method:repeat"), repeats.tiled),
    **dict.fromkeys(
        ("method:clone", "method:detach", "method:float", "method:double", "method:half", "method:bfloat16",
         "method:to", "method:type_as", "method:rsqrt", "method:square", torch.clone, torch.rsqrt, torch.square,
         torch.log1p, torch.sin, torch.cos, torch.zeros_like, torch.ones_like, F.logsigmoid, F.selu, F.celu, nn.SELU,
         nn.CELU, nn.Softsign, nn.LogSigmoid, nn.Identity),
        elementwise.unary,
    ),
    **dict.fromkeys(
        (torch.pow, "method:pow", operator.pow, torch.maximum, torch.minimum, torch.where, torch.masked_fill,
         "method:masked_fill", operator.gt, operator.ge, operator.lt, operator.le, operator.eq, operator.ne),
        elementwise.elementwise,
    ),
    torch.einsum: einsum,
    F.glu: elementwise.gated,
    nn.GLU: elementwise.gated,
    nn.LocalResponseNorm: elementwise.along_channels,
    fxq_windows.pad_to_multiple: windows.padded,
    fxq_windows.window_partition: windows.partitioned,
    fxq_windows.window_reverse: windows.reversed_windows,
    fxq_windows.window_bias: windows.biased,
    fxq_windows.relative_position_bias: windows.looked_up,
    F.normalize: elementwise.along_channels,
}  # fmt: skip


#: What a class may redefine of a layer's without computing anything else.
_HARMLESS: Final = frozenset({"__repr__", "extra_repr", "reset_parameters"})


def rule_of(op: OpCall) -> tuple[Rule | None, OpCall]:
    """The rule that describes ``op``, None where there is none, and ``op`` as the rule takes it.

    A layer of a class that changes nothing but the constructor of a known layer is that layer. A module with hooks or
    parametrisations computes more than its class says.
    """
    if op.module is not None and (has_hooks(op.module) or is_parametrized(op.module) or "forward" in vars(op.module)):
        return None, op
    if op.kind is getattr and op.node.args[1] == "T":
        return (moves.turned if len(recorded_value(op.node).shape) == 2 else None), op
    if isinstance(op.kind, str) and op.kind in RULES:
        return RULES[op.kind], op
    if isinstance(op.kind, type):
        for base, kind in STATEFUL_MODULES.items():
            if issubclass(op.kind, base) and redefined(op.kind, base) <= _HARMLESS:
                return RULES.get(kind), replace(op, kind=kind)
    if function_name(op.kind) in DROPOUT_FUNCTIONS:
        return elementwise.unary, op
    return OTHERS.get(op.kind), op


def kind_name(kind: Kind) -> str:
    """How a report names an operation."""
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
