"""Every layer, parameter and buffer that loses channels is exchanged for a smaller one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx, nn

from fxq.ir.identify import find_module
from fxq.ir.rewriter import Rewriter
from fxq.ir.shapes import TensorSpec
from fxq.structure.analysis import Slot
from fxq.structure.group import Mask
from fxq.structure.structure import Structure, kept_shape
from fxq.surgery.layers import is_sized_by_input, shrink_layer
from fxq.surgery.tensors import Positions, shrink_tensor


def shrink_layers(rw: Rewriter, structure: Structure, kept: Mask) -> None:
    """Let every node of ``rw`` call and read what stays of its weights; what was shared stays shared.

    Args:
        rw: at work on the graph that ``structure`` describes.
        kept: for each identity, whether it stays.
    """
    shrink = _Shrink(rw, structure, kept)
    for node in list(rw.graph.nodes):
        if node.op == "call_module":
            shrink.layer(str(node.target), node)
        elif node.op == "get_attr":
            shrink.attribute(str(node.target))


class _Shrink:
    """Makes each smaller tensor and layer once."""

    def __init__(self, rw: Rewriter, structure: Structure, kept: Mask) -> None:
        self._rw, self._structure, self._kept = rw, structure, kept
        self._positions = Positions(kept)
        self._slots = {id(_tensor(rw.gm, s)): s for s in structure.slots if self._loses(s)}
        self._tensors: dict[int, Tensor] = {}
        self._layers: dict[int, nn.Module] = {}

    def layer(self, path: str, caller: fx.Node | None) -> None:
        """Exchange the layer at ``path``; ``caller`` is a node that calls it, if any does."""
        layer = find_module(self._rw.gm, path)
        if id(layer) not in self._layers:
            tensors = {name: self._shrunk(t) for name, t in _own_tensors(layer) if id(t) in self._slots}
            before, after = self._shapes(caller) if is_sized_by_input(layer) else ((), ())
            if not tensors and before == after:
                return
            new = shrink_layer(layer, tensors, after)
            self._layers[id(layer)] = self._layers[id(new)] = new
        if self._layers[id(layer)] is not layer:
            self._rw.exchange_module(path, self._layers[id(layer)])

    def attribute(self, path: str) -> None:
        """Exchange a parameter or buffer that the graph reads by itself."""
        owner_path, _, name = path.rpartition(".")
        owner = self._rw.gm.get_submodule(owner_path)
        tensor = getattr(owner, name)
        if not isinstance(tensor, Tensor) or id(tensor) not in self._slots:
            return
        if type(owner) is nn.Module or owner is self._rw.gm:
            self._rw.set_tensor(path, self._shrunk(tensor))
        else:
            self.layer(owner_path, None)

    def _loses(self, slot: Slot) -> bool:
        return any(self._positions(ids) is not None for ids in slot.axes)

    def _shrunk(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = shrink_tensor(tensor, self._slots[id(tensor)], self._positions)
        return self._tensors[id(tensor)]

    def _shapes(self, caller: fx.Node | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of what a call gives, dense and pruned; both empty where it is no single tensor."""
        spec = self._structure.shapes.get(caller) if caller is not None else None
        if caller is None or not isinstance(spec, TensorSpec):
            return (), ()
        return spec.shape, kept_shape(self._structure.values[caller], spec.shape, self._kept)


def _own_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is not None:
            yield name, tensor


def _tensor(gm: nn.Module, slot: Slot) -> Tensor:
    found = getattr(find_module(gm, slot.path), slot.name)
    assert isinstance(found, Tensor)
    return found
