"""Which rule describes which operation of fxq's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.ops import CONV_TRANSPOSES, CONVS, DROPOUTS, STATEFUL_MODULES, Kind
from fxq.structure.analysis import Analysis, Value
from fxq.structure.rules import elementwise, layers, moves, products, recurrent

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
    "channel_shuffle": moves.channel_shuffled,
}

#: Operations that fxq's table lacks, by what names them there.
OTHERS: Final[Mapping[Kind, Rule]] = {
    "method:expand": moves.expanded,
    "method:expand_as": moves.expanded,
    torch.sum: elementwise.total,
    "method:sum": elementwise.total,
    torch.roll: moves.rolled,
    "method:roll": moves.rolled,
    **dict.fromkeys(
        ("method:clone", "method:detach", "method:float", "method:double", "method:to", "method:type_as", torch.clone),
        elementwise.unary,
    ),
    **dict.fromkeys((torch.rsqrt, torch.square, torch.log1p, torch.sin, torch.cos, F.logsigmoid, F.selu, F.celu,
                     nn.SELU, nn.CELU, nn.Softsign, nn.LogSigmoid, nn.Identity, "method:pow", torch.pow),
                    elementwise.unary),
    nn.LocalResponseNorm: elementwise.along_channels,
    F.normalize: elementwise.along_channels,
}  # fmt: skip


#: Functions of other packages, which need not be installed, by module and name.
_NAMED: Final[Mapping[str, Rule]] = {
    "torchvision.ops.stochastic_depth.stochastic_depth": elementwise.unary,
}


def rule_of(op: OpCall) -> Rule | None:
    """The rule that describes ``op``; None where there is none.

    A layer of a class that only adds to a known layer's constructor is that layer.
    """
    found = RULES.get(op.kind) if isinstance(op.kind, str) else None
    found = found or OTHERS.get(op.kind) or _NAMED.get(_full_name(op.kind))
    if found is None and isinstance(op.kind, type) and op.module is not None and not has_hooks(op.module):
        for base, kind in STATEFUL_MODULES.items():
            if issubclass(op.kind, base) and op.kind.forward is base.forward:
                return RULES.get(kind)
    return found


def kind_name(kind: Kind) -> str:
    """How a report names an operation."""
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _full_name(kind: Kind) -> str:
    return f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
