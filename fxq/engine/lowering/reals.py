"""Operations on real values between int8 layers, as transformers have them: sums, activations, layer norms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxq.engine.abi import Code, Type
from fxq.engine.lowering.context import Fixed, Lowering
from fxq.engine.lowering.elementwise import operands
from fxq.engine.lowering.fields import activation
from fxq.engine.plan.builder import Array, Constant
from fxq.engine.plan.layout import any_region, region
from fxq.engine.plan.views import View, maps, whole
from fxq.errors import TargetError
from fxq.ir.identify import OpCall
from fxq.nn.activations import activation_of


def lower_sum(low: Lowering, call: OpCall) -> View:
    """``a + b`` or ``a * b`` of float32 tensors; one may be smaller, or (of a sum) a constant of the graph."""
    if low.settings(call).get("alpha", 1) != 1:
        raise TargetError("it adds with alpha")
    values = [low.values.get(i, i) if not isinstance(i, int | float) else i for i in call.inputs]
    views = [v for v in values if isinstance(v, View)]
    if any(v.type is not Type.F32 for v in views):
        raise TargetError("it computes with codes as numbers")
    if len(views) == 1 and call.kind == "add":
        constant = next((v for v in values if isinstance(v, Fixed)), None)
        if constant is None:
            raise TargetError("one side is a number")
        return _add_constant(low, views[0], constant.tensor)
    if len(views) != 2:
        raise TargetError("one side is no tensor of the images")
    a, b = views
    if _smaller(a, b):
        a, b = b, a
    left, right, result = operands(low, a, b, type=Type.F32)
    code = Code.ADD_F32 if call.kind == "add" else Code.MUL
    low.builder.emit(code, [left, right], whole(result.buffer))
    return result


def _smaller(a: View, b: View) -> bool:
    if len(a.dims) != len(b.dims):
        return len(a.dims) < len(b.dims)
    return any(n == 1 and m > 1 for n, m in zip(a.shape, b.shape, strict=True))


def _add_constant(low: Lowering, view: View, tensor: Tensor) -> View:
    left, letters = any_region(low.builder, view)
    shape = [1] * (len(view.dims) - tensor.dim()) + list(tensor.shape)
    if len(shape) != len(view.dims) or shape[0] != 1 or tensor.dtype != torch.float32:
        raise TargetError(f"it adds a constant of shape {tuple(tensor.shape)}")
    if any(n not in (1, m) for n, m in zip(shape[1:], view.shape[1:], strict=True)):
        raise TargetError(f"it broadcasts {view.shape} and a constant of shape {tuple(tensor.shape)}")
    sizes = dict.fromkeys("yxc", 1)
    order = []
    for letter in "yxc":
        places = [d for d, own in enumerate(letters, 1) if own == letter]
        if len(places) > 1:
            raise TargetError("it adds a constant to dimensions that lie in memory as one")
        order += places
        sizes[letter] = shape[places[0]] if places else 1
    placed = tensor.detach().reshape(shape).permute(0, *order).contiguous()
    result = maps(low.builder.like(left), "n" + "".join(letters))
    ints = {0: sizes["y"], 1: sizes["x"], 2: sizes["c"]}
    low.builder.emit(Code.ADD_F32, [left, None], whole(result.buffer), ints, {}, [array_of(placed)], 4 * placed.numel())
    return result


def array_of(tensor: Tensor) -> Constant:
    """Return a constant of a plan."""

    def made() -> Array:
        found: Array = tensor.detach().cpu().numpy()
        return found

    return made


def write_constant(low: Lowering, tensor: Tensor, target: Any) -> None:
    """Write a tensor (rows, columns, channels) that is the same for all images into a region."""
    placed = tensor.detach().float().contiguous()
    ints = dict(enumerate(placed.shape))
    low.builder.emit(Code.ADD_F32, [None, None], target, ints, {}, [array_of(placed)], 4 * placed.numel())


def lower_activation(low: Lowering, call: OpCall) -> View:
    """An activation of float32 values."""
    view = low.view(call.inputs[0])
    if view.type is not Type.F32:
        raise TargetError("it computes with codes as numbers")
    epilogue = activation_of(call)
    if epilogue is None:
        raise TargetError("it clamps on one side only, or to limits out of order")
    fields = activation(epilogue, None)
    return low.same_shape(Code.UNARY_F32, view, ints=fields.ints, floats=fields.floats)


def lower_layer_norm(low: Lowering, args: Sequence[Any], module: nn.LayerNorm) -> View:
    """A layer norm over the last dimension."""
    bias = None if module.bias is None else array_of(module.bias)
    return _norm(low, args, module, Code.LAYER_NORM, module.eps, bias)


def lower_rms_norm(low: Lowering, args: Sequence[Any], module: nn.RMSNorm) -> View:
    """A root mean square norm over the last dimension."""
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    return _norm(low, args, module, Code.RMS_NORM, eps, None)


def _norm(
    low: Lowering, args: Sequence[Any], module: nn.LayerNorm | nn.RMSNorm, code: Code, eps: float, bias: Constant | None
) -> View:  # fmt: skip
    view = low.view(args[0])
    if len(module.normalized_shape) != 1 or view.shape[-1] != module.normalized_shape[0]:
        raise TargetError(f"a norm over {module.normalized_shape}")
    if view.type is not Type.F32:
        raise TargetError("it normalises codes as numbers")
    count = len(view.dims)
    if count not in (2, 3, 4):
        raise TargetError(f"a tensor of {count} dimensions")
    source = region(low.builder, view, range(1, count - 2), range(max(1, count - 2), count - 1), (count - 1,))
    result = maps(low.builder.like(source), {2: "nc", 3: "nxc", 4: "nyxc"}[count])
    channels = module.normalized_shape[0]
    weight = torch.ones(channels) if module.weight is None else module.weight
    low.builder.emit(code, [source], whole(result.buffer), {}, {0: eps}, [array_of(weight), bias], 8 * channels)
    return result


def lower_softmax(low: Lowering, call: OpCall) -> View:
    """A softmax over one dimension, of float32 values."""
    view = low.view(call.inputs[0])
    settings = low.settings(call)
    count = len(view.dims)
    if view.type is not Type.F32 or settings.get("dtype") not in (None, torch.float32):
        raise TargetError("a softmax of what is no float32")
    if settings["dim"] is None or count not in (2, 3, 4) or settings["dim"] % count == 0:
        raise TargetError(f"a softmax over dimension {settings['dim']} of {count}")
    dim = settings["dim"] % count
    others = [d for d in range(1, count) if d != dim]
    source = region(low.builder, view, others[:-1], others[-1:], (dim,))
    letters = {dim: "c"} | dict(zip(others[::-1], "xy", strict=False))
    result = maps(low.builder.like(source), "n" + "".join(letters[d] for d in range(1, count)))
    low.builder.emit(Code.SOFTMAX, [source], whole(result.buffer))
    return result


def lower_expand(low: Lowering, call: OpCall) -> Any:
    """``expand`` of a constant along the batch."""
    found = low.values.get(call.inputs[0])
    sizes: Sequence[Any] = low.number(call.node.args[1:])
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    if not isinstance(found, Fixed) or len(sizes) != found.tensor.dim() or found.tensor.shape[0] != 1:
        raise TargetError("the engine expands constants along the batch alone")
    inner: Mapping[int, int] = dict(enumerate(found.tensor.shape))
    if any(size not in (-1, inner[d]) for d, size in enumerate(sizes) if d):
        raise TargetError("the engine expands constants along the batch alone")
    return Fixed(found.tensor, repeated=True)
