"""Lower a QDQ graph to int8 modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.nn import QDQ_LAYERS, Dequantize, QDQAttention, QLookup, Quantize, dequantize, quantize
from fxq.nn.activations import activation_of
from fxq.quant.qparams import QParams
from fxq.quant.recipe import Recipe
from fxq.targets.backends import exchange_backends
from fxq.targets.int8_modules import HEADS, int8_module
from fxq.targets.int8_moves import SPLITS, computed_settings, move_module, moves_codes
from fxq.targets.pixels import store_pixels
from fxq.targets.resolve import module_backend
from fxq.targets.suitability import reads_shape_only, reads_size_only, why_float

#: What stands in a QDQ graph for modules on codes.
_QDQ = (*QDQ_LAYERS.values(), QDQAttention)


@dataclass(frozen=True)
class LowerInt8(Pass):
    """Let int8 modules compute on codes what the QDQ graph computes on dequantised values.

    Before: ``dequantize -> conv -> quantize``. After: ``QConv2d`` from u8 to u8, with
    ``y = clamp(round(acc * s_x * s_w[c] / s_y + b[c] / s_y) + z_y)``.

    Operations that only move values move codes, and the dequantise behind them; a quantise that meets a dequantise
    with the same parameters cancels. A layer or attention whose result is used in float alone gives float.
    The quantise and dequantise nodes that are left become modules, so that the state dict holds every scale.

    Args:
        target: ``"onednn"``, ``"reference"``, ``"auto"`` for the best that this machine runs, or ``"native"``: what
            runs single modules best, as ``FormSegments`` forms the parts of the engine.
        recipe: whose overrides keep layers in float, which may stand between quantised values; None keeps none.
    """

    name: ClassVar[str] = "lower_int8"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.QDQ,)
    produces: ClassVar[Stage | None] = Stage.INT8
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    target: str = "auto"
    recipe: Recipe | None = None

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        backend = module_backend(self.target)
        for node in rw.nodes():
            if node.target is quantize:
                _read_sizes_from_codes(node, rw)
        kept = self._kept_in_float(rw)
        for node in rw.nodes():
            if not node.op.startswith("call_") or not node.users or node in kept:
                continue
            if node.target is quantize:
                _cancel(node, rw, backend)
            elif node.target is not dequantize:
                _lower(rw.identify(node), rw, backend)
        rw.erase_unused(*[n for n in reversed(rw.graph.nodes) if n.target is dequantize])
        for node in rw.nodes():
            if node.target is quantize or node.target is dequantize:
                _keep_as_module(node, rw)
        exchange_backends(rw, backend)
        store_pixels(rw)

    def _kept_in_float(self, rw: Rewriter) -> set[fx.Node]:
        if self.recipe is None or not self.recipe.overrides:
            return set()
        choices = self.recipe.choices(rw.gm)
        return {n for n in rw.nodes() if n.op.startswith("call_") and not _is_border(n) and choices.why_float(n)}


def _is_border(node: fx.Node) -> bool:
    return node.target is quantize or node.target is dequantize


def _parameters(node: fx.Node) -> QParams:
    return QParams(float(node.args[1]), int(node.args[2]))  # type: ignore[arg-type]


def _is_dequantised(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is dequantize


def _read_sizes_from_codes(q: fx.Node, rw: Rewriter) -> None:
    """Codes have the shape of the values: who asks for no more must not keep the values alive.

    Who asks for the dtype asks the dequantised values.
    """
    (value,) = q.all_input_nodes
    if not any(map(reads_shape_only, value.users)):
        return
    with rw.rule("sizes", q):
        rw.replace_uses(value, q, only=reads_size_only)
        real = next((u for u in q.users if u.target is dequantize), None)
        if real is not None:
            rw.replace_uses(value, real, only=reads_shape_only)


def _cancel(q: fx.Node, rw: Rewriter, backend: str) -> None:
    """``quantize(dequantize(codes))`` is ``codes`` for equal parameters, a requantisation for different ones."""
    (value,) = q.all_input_nodes
    if not _is_dequantised(value):
        return
    (codes,) = value.all_input_nodes
    with rw.rule("cancel", q, value):
        if _parameters(value) != _parameters(q):
            module = QLookup(_parameters(value), _parameters(q), "identity", backend=backend)
            path = rw.free_path(_path(q))
            codes = rw.call_module(path, module, (codes,), before=q, like=q)
        rw.replace(q, codes)


def _keep_as_module(node: fx.Node, rw: Rewriter) -> None:
    """The border of an int8 region: the same node, with its parameters in a module instead of literal arguments."""
    module = (Quantize if node.target is quantize else Dequantize)(_parameters(node))
    with rw.rule("border", node):
        path = rw.free_path(node.name)
        rw.add_module(path, module)
        rw.update(node, op="call_module", target=path, args=node.args[:1], kwargs={})


def _lower(call: OpCall, rw: Rewriter, backend: str) -> None:
    quantised = call.node.args[:3] if isinstance(call.module, QDQAttention) else call.inputs  # all but a mask
    inputs = [i for i in quantised if isinstance(i, fx.Node)]
    if not inputs or not all(map(_is_dequantised, inputs)):
        if call.kind == "getitem":
            return
        if type(call.module) in _QDQ:
            rw.refuse("int8", call.node, "not every input is quantised")
        return
    reason = None if type(call.module) in _QDQ else why_float(call)
    if reason is not None:
        rw.refuse("int8", call.node, reason)
        return
    parameters = [_parameters(i) for i in inputs]
    if moves_codes(call) and all(p == parameters[0] for p in parameters):
        _move(call, inputs, parameters[0], rw)
        return
    module = move_module(call, parameters[0])
    if module is not None:
        with rw.rule("move", call.node):
            _replace_by_codes(call, module, (inputs[0], *computed_settings(call)), parameters[0], rw)
        return
    _compute(call, inputs, parameters, rw, backend)


def _move(call: OpCall, inputs: list[fx.Node], parameters: QParams, rw: Rewriter) -> None:
    """``move(dequantize(codes))`` becomes ``dequantize(move(codes))``."""
    node = call.node
    with rw.rule("move", node):
        codes = {i: i.all_input_nodes[0] for i in inputs}
        args = fx.map_arg(node.args, lambda n: codes.get(n, n))
        kwargs = fx.map_arg(node.kwargs, lambda n: codes.get(n, n))
        rw.update(node, args=args, kwargs=kwargs)
        items = [u for u in node.users if not reads_size_only(u)] if call.kind in SPLITS else [node]
        for item in items:
            _dequantise_behind(item, parameters, rw)


def _dequantise_behind(node: fx.Node, parameters: QParams, rw: Rewriter) -> None:
    literals = (parameters.scale, parameters.zero_point)
    real = rw.call_function(dequantize, (node, *literals), after=node, like=node, name=f"{node.name}_dequantize")
    rw.replace_uses(node, real, only=lambda user: user is not real and not reads_size_only(user))


def _replace_by_codes(call: OpCall, module: Any, args: tuple[Any, ...], parameters: QParams, rw: Rewriter) -> None:
    node, (value, *settings) = call.node, args
    given = (value.all_input_nodes[0], *settings)
    new = rw.call_module(rw.free_path(_path(node)), module, given, before=node, like=node, name=f"{node.name}_u8")
    rw.replace(node, new)
    _dequantise_behind(new, parameters, rw)


def _compute(call: OpCall, inputs: list[fx.Node], parameters: list[QParams], rw: Rewriter, backend: str) -> None:
    """Replace ``quantize(activation(op(dequantize ...)))`` by one int8 module; layers may also give float."""
    tail, activation = _with_activation(call, rw)
    quantised = [u for u in tail.users if u.target is quantize]
    if quantised and len(tail.users) > 1:
        rw.refuse("int8", call.node, f"the value of `{tail.name}` is used both quantised and in float")
        return
    output = _parameters(quantised[0]) if quantised else None
    module = int8_module(call, parameters, output, backend, activation)
    if isinstance(module, str):
        rw.refuse("int8", call.node, module)
        return
    matched = [call.node, *([tail] if tail is not call.node else []), *quantised]
    with rw.rule("int8", *matched):
        end = quantised[0] if quantised else tail
        codes = tuple(i.all_input_nodes[0] for i in inputs)
        if type(call.module) in _QDQ:
            rw.give_own_module(call.node, module)
            rw.update(call.node, args=(*codes, *call.node.args[len(codes) :]), kwargs={})
            if quantised:
                rw.replace(end, call.node)
            return
        new = rw.call_module(rw.free_path(_path(tail)), module, codes, before=end, like=tail, name=f"{tail.name}_u8")
        rw.replace(end, new)
        rw.erase_unused(tail, call.node)


def _with_activation(call: OpCall, rw: Rewriter) -> tuple[fx.Node, Any]:
    """Return the activation that the int8 module can take along, as the last node and its epilogue."""
    node = call.node
    if call.kind in HEADS and len(node.users) == 1 and not isinstance(call.inputs[-1], int | float):
        (user,) = node.users
        activation = activation_of(rw.identify(user))
        if activation is not None and any(u.target is quantize for u in user.users):
            return user, activation
    return node, None


def _path(node: fx.Node) -> str:
    path = node_info(node).module_path
    own = node.name
    return f"{path}.{own}" if path and node.op != "call_module" else path or own
