"""Which single operations int8 can compute: asked before observers are placed, and again when a graph is lowered."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn

from fxq.ir.identify import OpCall, has_hooks
from fxq.ir.ops import MOVES, WEIGHTED, is_finite_number
from fxq.ir.scalars import is_scalar
from fxq.ir.shapes import tensor_spec
from fxq.nn import FUSED_LAYERS, Epilogue
from fxq.nn.activations import ACTIVATION_KINDS, activation_of
from fxq.targets.int8_moves import BY_MODULE, SPLITS, is_literal, is_move

POOLS = frozenset(f"{mode}_pool{n}d" for mode in ("avg", "adaptive_avg") for n in (1, 2, 3)) | {"mean"}
UNARY = frozenset({
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "elu",
    "mish", "softplus", "clamp", "neg", "abs",
})  # fmt: skip
#: Products of codes in a sum of attention, at most: their sum stays in 32 bits.
MOST_SUMMED = 1 << 14
#: Keys of attention from which int8 saves time that shows. A trained ViT of 17 tokens loses 0.1 to 0.4 dB for nothing.
LEAST_KEYS = 32
BINARY = frozenset({"add", "mul"})
_SIZE_READS = frozenset({"size", "dim", "ndimension", "numel", "shape", "ndim", "device"})
_SHAPE_READS = _SIZE_READS | {"dtype", "is_floating_point", "element_size"}


def reads_shape_only(user: fx.Node) -> bool:
    """Whether a node reads no more of its input than its size, dtype or device."""
    return _reads(user, _SHAPE_READS)


def reads_size_only(user: fx.Node) -> bool:
    """Whether a node reads only what codes and values have in common: size and device."""
    return _reads(user, _SIZE_READS)


def _reads(user: fx.Node, names: frozenset[str]) -> bool:
    if user.op == "call_method":
        return str(user.target) in names
    if user.op == "call_function" and user.target is getattr and len(user.args) > 1:
        return str(user.args[1]) in names
    return False


def is_weighted(call: OpCall) -> bool:
    """Whether a call is a float layer whose weights int8 can hold: a convolution or linear layer, fused or not."""
    return call.kind in WEIGHTED or type(call.module) in FUSED_LAYERS.values()


def quantised_inputs(call: OpCall) -> tuple[fx.Node, ...]:
    """The inputs that are codes where ``call`` runs in int8: all, but for attention's mask."""
    if call.kind != "attention":
        return call.nodes
    return tuple(i for i in call.inputs[:3] if isinstance(i, fx.Node))


def picks_from_tuple(call: OpCall) -> bool:
    """Whether a call picks an element from what another one returned, and computes nothing."""
    return call.kind == "getitem" and bool(call.nodes) and tensor_spec(call.nodes[0]) is None


def why_float(call: OpCall) -> str | None:
    """Return why int8 cannot compute ``call``, whatever surrounds it; None where it can."""
    return _kind_reason(call) or _input_reason(quantised_inputs(call))


def _kind_reason(call: OpCall) -> str | None:
    if call.inplace:
        return "it writes in place"
    if is_weighted(call):
        return _layer_reason(call)
    if call.kind in MOVES:
        return _move_reason(call)
    if call.kind in POOLS or call.kind in UNARY:
        return _unary_reason(call)
    if call.kind in BINARY:
        return _binary_reason(call)
    if call.kind == "attention":
        return _attention_reason(call)
    if call.kind == "batch_norm":
        frozen = isinstance(call.module, nn.Module) and not call.module.training and call.module.running_var is not None
        return None if frozen else "batch norm without frozen statistics"
    if call.module is not None and has_hooks(call.module):
        return f"{_name(call)} has hooks"
    return f"no int8 kernel for {_name(call)}"


def _name(call: OpCall) -> str:
    if isinstance(call.kind, str):
        return call.kind.removeprefix("method:")
    return getattr(call.kind, "__name__", str(call.kind))


def _input_reason(inputs: Iterable[fx.Node]) -> str | None:
    for node in inputs:
        spec = tensor_spec(node)
        if spec is not None and spec.dtype != torch.float32:
            return f"its input is {spec}, int8 replaces float32"
        if node.op == "get_attr":
            return f"its input `{node.target}` is a constant tensor"
    return None


def _layer_reason(call: OpCall) -> str | None:
    epilogue = getattr(call.module, "epilogue", Epilogue())
    given = len(call.node.args) + len(call.node.kwargs)
    return None if given == (2 if epilogue.add else 1) else "it is called with further arguments, such as output_size"


def _attention_reason(call: OpCall) -> str | None:
    attrs = call.attrs
    if not is_literal((attrs["dropout_p"], attrs["is_causal"], attrs["scale"])):
        return "its settings are computed in the graph"
    if attrs["dropout_p"] or attrs["enable_gqa"]:
        return "attention with dropout or shared heads"
    shapes = [spec.shape for node in call.inputs[:3] if (spec := tensor_spec(node)) is not None]
    if len(shapes) != 3 or any(len(s) != 4 for s in shapes) or len({tuple(s[:2]) for s in shapes}) > 1:
        return "its queries, keys and values are not of (images, heads, tokens, features)"
    if shapes[0][0] != _images(call.node.graph):
        return "of parts of an image, which no int8 kernel takes"
    if shapes[1][2] < LEAST_KEYS:
        return f"of fewer than {LEAST_KEYS} keys: int8 would save no time"
    if max(shapes[0][3], shapes[1][2]) > MOST_SUMMED:
        return f"it sums more than {MOST_SUMMED} products"
    mask = call.inputs[3] if len(call.inputs) > 3 else None
    if not isinstance(mask, fx.Node) or mask.op == "get_attr":
        return None
    spec = tensor_spec(mask)
    known = spec is not None and len(spec.shape) == 4 and spec.shape[0] == shapes[0][0]
    if spec is not None and known and spec.dtype in (torch.float32, torch.bool):
        return None
    return f"its mask is {spec}, and neither a constant nor of each image"


def _images(graph: fx.Graph) -> int | None:
    """The batch size that was recorded: that of the first tensor that goes in."""
    specs = (tensor_spec(node) for node in graph.nodes if node.op == "placeholder")
    return next((spec.shape[0] for spec in specs if spec is not None and spec.shape), None)


def _move_reason(call: OpCall) -> str | None:
    kind = str(call.kind)
    if not is_move(kind):
        return f"no int8 kernel for {kind}"
    if kind == "interpolate" and call.attrs["mode"] not in ("nearest", "nearest-exact"):
        return f"{call.attrs['mode']} interpolation makes new values"
    if kind == "getitem" and not _is_basic_index(call.attrs["index"]):
        return "it selects by a computed index"
    if kind in SPLITS and not all(_picks_one(u) or reads_shape_only(u) for u in call.node.users):
        return "its parts are not picked one by one"
    if kind in BY_MODULE and not is_literal(tuple(v for k, v in call.attrs.items() if k != "pad")):
        return "its settings are computed in the graph"
    if kind == "pad" and call.attrs["mode"] == "constant" and not is_finite_number(call.attrs["value"] or 0):
        return f"it pads with {call.attrs['value']}"
    return None


def _is_basic_index(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, int | slice) for p in parts)


def _picks_one(user: fx.Node) -> bool:
    return user.op == "call_function" and len(user.args) == 2 and isinstance(user.args[1], int)


def _unary_reason(call: OpCall) -> str | None:
    if not is_literal(tuple(call.attrs.values())):
        return "its settings are computed in the graph"
    if call.attrs.get("dtype") not in (None, torch.float32):
        return f"it returns {call.attrs['dtype']}"
    if call.kind == "mean" and call.attrs["dim"] is None:
        return "a mean over every dimension, the batch included"
    if call.kind in ACTIVATION_KINDS and activation_of(call) is None:
        return "it clamps on one side only, or to limits out of order"
    return None


def _binary_reason(call: OpCall) -> str | None:
    if call.attrs.get("alpha", 1) != 1:
        return f"{call.kind} with alpha={call.attrs['alpha']}"
    numbers = [i for i in call.inputs if not isinstance(i, fx.Node)]
    if any(is_scalar(n) for n in call.nodes):
        return "one side is a number computed in the graph"
    if numbers and not all(map(is_finite_number, numbers)):
        return f"one side is {numbers[0]!r}"
    return None
