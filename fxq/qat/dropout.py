"""Dropout through the preparation: taken out, so that the passes see what int8 will compute, and put back to train."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd as _Dropout

from fxq.ir.identify import OpCall
from fxq.ir.ops import DROPOUTS, STATELESS_MODULES
from fxq.ir.provenance import node_info
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import keep_record
from fxq.nn.dropping_attention import DroppingAttention
from fxq.nn.epilogue import Epilogue
from fxq.nn.fake_quantisers import FakeQuantise
from fxq.nn.fused import FUSED_LAYERS
from fxq.nn.qattention import QDQAttention
from fxq.nn.stochastic_depth import StochasticDepth
from fxq.nn.trainable import TrainableLayer

_CLASSES: Final = {kind: module for module, (kind, _, _) in STATELESS_MODULES.items() if kind in DROPOUTS}
_STOCHASTIC_DEPTH: Final = "torchvision.ops.stochastic_depth.stochastic_depth"
_FOLD: Final = "fold_batch_norm"


@dataclass
class Dropped:
    """A dropout that was taken out.

    Attributes:
        module: the module that does it, following ``train()`` and ``eval()``.
        path: where it was in the model.
        producer: the id of the node whose value it read.
        users: the ids of the nodes that read its result.
    """

    module: nn.Module
    path: str
    producer: int
    users: set[int]


def take_out(gm: fx.GraphModule) -> tuple[fx.GraphModule, list[Dropped]]:
    """Return ``gm``, a canonical graph in eval mode, without its dropouts, and those; ``gm`` is left as it was."""
    rw = Rewriter(gm, "take_out_dropout")
    found: list[Dropped] = []
    for call in rw.calls():
        module = _module(call)
        if module is None:
            continue
        node, source = call.node, call.nodes[0]
        users = {node_info(u).id for u in node.users}
        for earlier in found:  # a dropout behind a dropout
            if node_info(node).id in earlier.users:
                earlier.users |= users
        found.append(Dropped(module, node_info(node).module_path or node.name, _producer(source, rw), users))
        with rw.rule("dropout", node):
            rw.replace(node, source)
    return rw.finish(), found


def put_back(gm: fx.GraphModule, dropped: list[Dropped], note: Callable[[str], None]) -> fx.GraphModule:
    """Return ``gm``, prepared, with the dropouts where they were; between a layer and its epilogue they are in it.

    Behind a fake quantiser they stand behind it, so that it observes what it will see in eval mode. ``gm`` is left as
    it was. ``note`` is told which dropout found no place.
    """
    rw = Rewriter(gm, "put_back_dropout")
    for one in dropped:
        places = _Places(rw)
        node = places.standing_for(one.producer)
        if node is None or not any(put(one, node, places, rw) for put in (_as_attention, _inside, _behind)):
            note(f"the dropout `{one.path}` is not active in training: its place was rewritten")
    return rw.finish()


class _Places:
    """Which node of the prepared graph stands for each node that there was: itself, or the one that it went into."""

    def __init__(self, rw: Rewriter) -> None:
        self._alive = {node_info(n).id: n for n in rw.graph.nodes}
        self._into: dict[int, fx.Node] = {}
        for node in rw.graph.nodes:
            for source in _sources(node):
                if source not in self._alive:
                    self._into.setdefault(source, node)

    def standing_for(self, identity: int) -> fx.Node | None:
        return self._alive.get(identity) or self._into.get(identity)

    def stands_for_one(self, node: fx.Node, identities: set[int]) -> bool:
        return node_info(node).id in identities or any(s in identities for s in _sources(node))


def _sources(node: fx.Node) -> set[int]:
    return {s for origin in node_info(node).origins for s in origin.sources}


def _module(call: OpCall) -> nn.Module | None:
    """The module that does in training what ``call`` would do; None where it is no dropout."""
    if call.kind in _CLASSES and call.attrs["training"] is False and isinstance(call.attrs["p"], int | float):
        made: nn.Module = _CLASSES[str(call.kind)](call.attrs["p"])
        return made.eval()
    target: Any = call.node.target
    if f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}" != _STOCHASTIC_DEPTH:
        return None
    given = inspect.signature(target).bind(*call.node.args, **call.node.kwargs).arguments
    return StochasticDepth(given["p"], given["mode"]).eval() if given.get("training") is False else None


def _producer(source: fx.Node, rw: Rewriter) -> int:
    """The id of the node whose value is dropped; of an attention module's results, that of the module's call."""
    if source.target is operator.getitem and source.args[1] == 0:
        module = rw.module_of(source.all_input_nodes[0])
        source = source.all_input_nodes[0] if isinstance(module, nn.MultiheadAttention) else source
    return node_info(source).id


def _as_attention(one: Dropped, node: fx.Node, places: _Places, rw: Rewriter) -> bool:
    """Let attention drop weights itself."""
    dropping, rounding = one.module, rw.module_of(node)
    if not isinstance(dropping, DroppingAttention):
        return False
    if isinstance(rounding, QDQAttention):
        dropping = QDQAttention(rounding.is_causal, rounding.scale, dropping.p).eval()
    with rw.rule("dropping_attention", node):
        path = rw.free_path(one.path)
        rw.add_module(path, dropping)
        rw.update(node, op="call_module", target=path, args=node.args, kwargs={})
    return True


def _inside(one: Dropped, node: fx.Node, places: _Places, rw: Rewriter) -> bool:
    """Put the dropout between a layer and its epilogue; False where it does not belong there."""
    layer = rw.module_of(node)
    epilogue = getattr(layer, "epilogue", None)
    if not isinstance(epilogue, Epilogue) or not epilogue or layer is None:
        return False
    folded = {s for o in node_info(node).origins if o.pass_name == _FOLD for s in o.sources}
    if one.producer != node_info(node).id and one.producer not in folded:
        return False
    if type(layer) in FUSED_LAYERS.values():
        layer = TrainableLayer(layer, None, None, epilogue)
    if not isinstance(layer, TrainableLayer):
        return False
    both = _joined(layer.dropout, one.module)
    if both is None:
        return False
    with rw.rule("dropout_inside", node):
        layer.dropout = both
        rw.set_module(node, layer)
    return True


def _joined(first: nn.Module | None, second: nn.Module) -> nn.Module | None:
    """One module that drops what the two would; None where there is none."""
    if first is None:
        return second
    if type(first) is not nn.Dropout or type(second) is not nn.Dropout:
        return None
    return nn.Dropout(1.0 - (1.0 - first.p) * (1.0 - second.p)).eval()


def _behind(one: Dropped, node: fx.Node, places: _Places, rw: Rewriter) -> bool:
    """Put the dropout behind ``node``, or behind its fake quantisers, for those that read its result."""
    readers: list[tuple[fx.Node, set[fx.Node]]] = []
    values = [node]
    for value in values:  # through fake quantisers, and dropouts that are back already
        passing = [u for u in value.users if isinstance(rw.module_of(u), FakeQuantise | _Dropout | StochasticDepth)]
        values += passing
        users = {u for u in value.users if u not in passing and places.stands_for_one(u, one.users)}
        if users:
            readers.append((value, users))
    path = _path(one, rw) if readers else ""
    for value, users in readers:
        with rw.rule("dropout", value):
            drop = rw.call_shared_module(path, one.module, (value,), after=value)
            keep_record(value, drop)
            rw.replace_uses(value, drop, only=lambda user, users=users: user in users)  # type: ignore[misc]
    return bool(readers)


def _path(one: Dropped, rw: Rewriter) -> str:
    try:
        taken = rw.gm.get_submodule(one.path)
    except AttributeError:
        return rw.free_path(one.path)
    return rw.free_path(f"{one.path}.dropout" if type(taken) is nn.Module else f"{one.path}_dropout")
