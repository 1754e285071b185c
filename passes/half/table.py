"""Which operations are safe in half precision, and what each asks for."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import fx, nn

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.ops import MOVES, is_finite_number
from fxq.ir.shapes import tensor_spec
from fxq.ir.snapshot import kind_text
from fxq.passes.layers.queries import LAYERS

#: Sums of products: where half precision pays.
PRODUCTS: Final = (*LAYERS, "matmul", "lstm")
#: Elementwise operations whose results are no larger than their inputs, or are a few times as large; and moves.
FOLLOWERS: Final = MOVES | {
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "gelu", "leaky_relu", "sigmoid", "tanh", "elu",
    "mish", "softplus", "clamp", "add", "sub", "mul", "neg", "abs", "method:expand", "method:expand_as",
    "method:repeat", "method:clone",
}  # fmt: skip
#: Operations that stay in float, and why.
SENSITIVE: Final[dict[str, str]] = {
    **dict.fromkeys(("softmax", "log_softmax", "attention"), "it sums exponentials"),
    **dict.fromkeys(
        ("layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"), "it divides by a deviation"
    ),
    **dict.fromkeys((f"{m}_pool{n}d" for m in ("avg", "adaptive_avg") for n in (1, 2, 3)), "it is a mean"),
    "mean": "it is a mean",
    **dict.fromkeys(("exp", "div", "sqrt"), "its result may be far larger or smaller than what it reads"),
    "embedding": "it computes nothing",
    "embedding_bag": "it is a sum",
    **dict.fromkeys(("gru", "rnn"), "torch's layer is no faster in half precision"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_cell"), "torch's cell is no faster in half precision"),
}
#: Of these, what PyTorch's bf16 kernels compute in float32 inside, with weights in float32: what they give is rounded
#: to bf16, nothing else. Between int8 layers that costs less than conversions around them. Left out: RMS norms take
#: weights in bf16 alone, pools of three dimensions have no such kernel, softmax and attention gain nothing.
FLOAT_INSIDE: Final = frozenset({"layer_norm", "group_norm", "instance_norm", "batch_norm", "mean"}) | {
    f"{m}_pool{n}d" for m in ("avg", "adaptive_avg") for n in (1, 2)
}
#: fp16 reaches from 2**-14, with all its bits, to 2**16: values are kept this far inside, because other data differs.
LARGEST: Final = 2.0**13
SMALLEST: Final = 2.0**-10


def hindrance(call: OpCall, dtype: torch.dtype, between_int8: bool = False) -> str | None:
    """Return why ``call`` must stay in float whatever surrounds it, or None.

    Args:
        between_int8: whether it may be one of ``FLOAT_INSIDE``, where ``dtype`` is bf16.
    """
    if call.module is not None and has_hooks(call.module):
        return f"{type(call.module).__name__} has hooks"
    inside = between_int8 and dtype is torch.bfloat16 and call.kind in FLOAT_INSIDE
    if isinstance(call.kind, str) and call.kind in SENSITIVE and not inside:
        return SENSITIVE[call.kind]
    if inside and call.attrs.get("dtype") is not None:
        return f"it returns {call.attrs['dtype']}"
    if call.kind not in PRODUCTS and call.kind not in FOLLOWERS and not inside:
        return f"{kind_text(call.kind)} is not known to be safe in half precision"
    if call.inplace:
        return "it writes in place"
    if call.kind == "interpolate" and call.attrs["mode"] not in ("nearest", "nearest-exact"):
        return f"{call.attrs['mode']} interpolation is a mean"
    if call.kind == "lstm":
        return _lstm_reason(call)
    if call.module is not None and dtype is torch.float16:
        return _weight_reason(call.module)
    numbers = [v for v in (*call.inputs, *call.attrs.values()) if isinstance(v, float)]
    numbers += [v for v in call.inputs if isinstance(v, int)]
    outside = [v for v in numbers if not _fits(v, dtype)]
    return f"the constant {outside[0]!r} is out of the range of half precision" if outside else None


def _fits(value: float, dtype: torch.dtype) -> bool:
    if not is_finite_number(value):
        return not math.isnan(value)
    return value == 0 or dtype is torch.bfloat16 or SMALLEST <= abs(value) <= LARGEST


def _lstm_reason(call: OpCall) -> str | None:
    layer = call.module
    assert isinstance(layer, nn.LSTM)
    if layer.proj_size:
        return "torch has no fast half precision kernel for projections"
    if not call.nodes or tensor_spec(call.nodes[0]) is None:
        return "its input is a packed sequence"
    picked = all(u.op == "call_function" and kind_text(u.target) == "getitem" for u in call.node.users)
    return None if picked else "its results are not picked one by one"


def _weight_reason(layer: nn.Module) -> str | None:
    for name, parameter in layer.named_parameters():
        largest = float(parameter.detach().abs().amax()) if parameter.numel() else 0.0
        if largest > LARGEST or (name == "weight" and 0.0 < largest < SMALLEST):
            return f"its {name} reaches {largest:.3g}, which is too {'large' if largest > 1 else 'small'} for fp16"
    return None


def real_inputs(call: OpCall) -> list[fx.Node]:
    """The inputs that hold float32 values: a tensor, or some in a tuple."""
    return [n for n in dict.fromkeys(call.node.all_input_nodes) if is_real(n)]


def is_real(node: fx.Node) -> bool:
    """Whether the recorded value of ``node`` is float32, or a tuple with such a value in it."""
    return _real(node.meta.get("fxq_tensor"))


def _real(seen: object) -> bool:
    if isinstance(seen, tuple):
        return any(map(_real, seen))
    return getattr(seen, "dtype", None) is torch.float32
