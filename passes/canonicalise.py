"""One spelling for each operation."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx, nn

from fxq.ir.identify import OpCall
from fxq.ir.ops import SPECS, STATEFUL_MODULES
from fxq.ir.rewriter import Rewriter
from fxq.ir.scalars import is_shape
from fxq.ir.shapes import recorded_value, tensor_spec
from fxq.ir.stage import Stage
from fxq.manager.base import Pass
from fxq.manager.context import PassContext
from fxq.passes.graph.spelling import canonical_call, is_spelled
from fxq.passes.layers.functional import LAYER_FUNCTIONS, LayerFunction
from fxq.passes.layers.held import held_reason, held_tensor, layer_path
from fxq.passes.layers.plain_class import plain_twin

_NDIM = {"conv1d": 3, "conv2d": 4, "conv3d": 5, "conv_transpose1d": 3, "conv_transpose2d": 4, "conv_transpose3d": 5}


@dataclass(frozen=True)
class Canonicalise(Pass):
    """Write each operation in its one way, so that a pattern needs to be written once.

    The function computed is the same; only its spelling changes::

        a = conv(input=x)                        a = conv(x)
        b = self.relu(a)                         b = F.relu(a)
        c = b.view(b.size(0), -1)                c = torch.reshape(b, shape=(size, -1))
        d = 1 + c                                d = torch.add(c, 1, alpha=1)
        return F.linear(d, self.w, self.b)       return self.w_linear(d)

    ``one_spelling``: an operation without parameters, be it a module, a function, a method or an operator, becomes a
    call of the table's function, tensors positional, attributes as keywords with defaults written out.
    ``function_to_module``: a functional layer whose parameters are attributes of the model becomes a call of the
    module, which shares them; calls with the same parameters and settings share one module. ``positional_inputs``: a
    module's inputs given by name are given by position. ``plain_class``: a layer whose class redefines nothing of
    PyTorch's but the constructor becomes one of PyTorch's class.

    Refused: operations that still write in place (Functionalise says why), and functional layers whose parameters are
    computed or whose settings are only known at run time. Operations that the table lacks, and arithmetic on sizes,
    are no candidates.
    """

    name: ClassVar[str] = "canonicalise"
    produces: ClassVar[Stage | None] = Stage.CANONICAL

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        made: dict[tuple[Any, ...], str] = {}
        twins: dict[nn.Module, nn.Module] = {}
        for call in rw.calls():
            call = _plain_class(call, rw, twins)
            function = LAYER_FUNCTIONS.get(call.kind) if not isinstance(call.kind, str) else None
            if function is not None and call.node.op == "call_function":
                reason = _function_to_module(function, call, rw, made)
                if reason is not None:
                    rw.refuse("function_to_module", call.node, reason)
            elif call.kind in SPECS:
                _one_spelling(call, rw)
            elif call.module is not None and call.kind in STATEFUL_MODULES.values():
                _positional_inputs(call, rw)


def _plain_class(call: OpCall, rw: Rewriter, twins: dict[nn.Module, nn.Module]) -> OpCall:
    """Exchange the layer of ``call`` for one of PyTorch's own class where that is all it is."""
    if call.module is None:
        return call
    twin = twins.get(call.module) or plain_twin(call.module)
    if twin is None:
        return call
    twins[call.module] = twin
    with rw.rule("plain_class", call.node):
        rw.exchange_module(str(call.node.target), twin)
        rw.update(call.node)
    return rw.identify(call.node)


def _one_spelling(call: OpCall, rw: Rewriter) -> None:
    if call.kind == "reshape" and not call.inplace and (shape := _spread(call.attrs["shape"], call.node, rw)):
        call = replace(call, attrs={**call.attrs, "shape": shape})
    spelled = canonical_call(call)
    if call.inplace:
        rw.refuse("one_spelling", call.node, "it writes in place")
    elif not is_spelled(call.node, spelled):
        with rw.rule("one_spelling", call.node):
            function, args, kwargs = spelled
            rw.update(call.node, op="call_function", target=function, args=args, kwargs=kwargs)


def _spread(shape: Any, node: fx.Node, rw: Rewriter) -> tuple[Any, ...] | None:
    """The sizes of a sum of shapes one by one, so that each can be read and changed; None of anything else.

    ``x.shape[:-1] + (heads, -1)`` becomes ``(x.shape[:-1][0], x.shape[:-1][1], heads, -1)``.
    """
    if not isinstance(shape, fx.Node) or shape.target is not operator.add or not is_shape(shape):
        return None
    sizes: list[Any] = []
    for part in shape.args:
        if isinstance(part, tuple):
            sizes += part
            continue
        assert isinstance(part, fx.Node)
        seen = recorded_value(part)
        if not isinstance(seen, tuple):
            return None
        inner = _spread(part, node, rw)
        with rw.rule("one_spelling", shape):
            sizes += inner or [
                rw.call_function(operator.getitem, (part, i), before=node, like=part) for i in range(len(seen))
            ]
    return tuple(sizes)


def _positional_inputs(call: OpCall, rw: Rewriter) -> None:
    """``conv(input=x)`` becomes ``conv(x)``; other keywords (masks, an output size) stay behind the first gap."""
    assert call.module is not None
    kwargs = dict(call.node.kwargs)
    args = list(call.node.args)
    for name in list(inspect.signature(type(call.module).forward).parameters)[len(args) + 1 :]:
        if not isinstance(kwargs.get(name), fx.Node):
            break
        args.append(kwargs.pop(name))
    if len(args) > len(call.node.args):
        with rw.rule("positional_inputs", call.node):
            rw.update(call.node, args=tuple(args), kwargs=kwargs)


def _function_to_module(
    function: LayerFunction, call: OpCall, rw: Rewriter, made: dict[tuple[Any, ...], str]
) -> str | None:
    """Let a module compute what a functional layer computes; return the reason where that cannot be."""
    node = call.node
    values = function.bind(node)
    if values is None or not isinstance(values["input"], fx.Node):
        return "its arguments are not those of the function"
    x = values.pop("input")
    given = {name: values.pop(name) for name in function.tensors}
    if function.kind == "batch_norm" and rw.gm.training:
        return "it keeps its running statistics, which a module in training mode would not"
    reason = _settings_reason(values) or next(filter(None, (held_reason(n, t, rw) for n, t in given.items())), None)
    if reason is not None:
        return reason
    paths = {name: None if n is None else str(n.target) for name, n in given.items()}
    key = (function.kind, tuple(paths.items()), repr(values), rank := _rank(x, rw))
    tensors = {name: None if path is None else held_tensor(rw, path) for name, path in paths.items()}
    module = function.build(tensors, values, rank) if key not in made else None
    if isinstance(module, str):
        return module
    with rw.rule("function_to_module", node):
        if module is not None:
            made[key] = rw.free_path(layer_path(paths, function.kind, node))
            rw.add_module(made[key], module.train(rw.gm.training))
        rw.update(node, op="call_module", target=made[key], args=(x,), kwargs={})
        rw.erase_unused(*(n for n in given.values() if n is not None))
    return None


def _settings_reason(settings: dict[str, Any]) -> str | None:
    for name, value in settings.items():
        values = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(v, fx.Node) for v in values):
            return f"its {name} is only known at run time"
    return None


def _rank(x: fx.Node, rw: Rewriter) -> int | None:
    """Return the number of dimensions of a value: recorded, or that of a convolution's batched result."""
    spec = tensor_spec(x)
    if spec is not None:
        return len(spec.shape)
    kind = rw.identify(x).kind
    return _NDIM.get(kind) if isinstance(kind, str) else None
