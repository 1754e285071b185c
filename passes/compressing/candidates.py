"""Which layers a pass that compresses weights may touch: chosen by path, with plain weights of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from fxq.errors import InputError, nearest
from fxq.ir.identify import OpCall, read_attribute
from fxq.ir.rewriter import Rewriter
from fxq.passes.layers.queries import LAYERS, copy_module, opaque_layer, shares_weight


@dataclass(frozen=True)
class Candidate:
    """A convolution or linear layer, plain or fused, whose weight may be exchanged, and the calls of it."""

    path: str
    module: nn.Module
    calls: tuple[OpCall, ...]

    @property
    def weight(self) -> Tensor:
        """Its weight, as it stands there."""
        return cast(Tensor, self.module.weight)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The nodes that call it."""
        return tuple(call.node for call in self.calls)


def as_globs(value: str | Iterable[str], option: str) -> tuple[str, ...]:
    """Return an option that takes globs as a tuple of them; one glob may stand alone.

    Raises:
        InputError: it is something else.
    """
    listed = isinstance(value, Iterable) and not isinstance(value, str)
    globs: tuple[Any, ...] = tuple(value) if listed else (value,)
    if not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"{option} is {value!r}", fix="give globs over module paths, such as ('head', 'layer1.*')")
    return globs


def is_share(value: object) -> bool:
    """Whether an option is a number from 0 to 1."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= 1.0


def candidates(rw: Rewriter, rule: str, layers: tuple[str, ...], exclude: tuple[str, ...]) -> list[Candidate]:
    """Return the layers that match one of the globs ``layers`` and none of ``exclude``, and refuse the others.

    Globs are over module paths; ``*`` matches dots too.

    Raises:
        InputError: a glob matches no layer; the nearest paths are suggested.
    """
    found: dict[nn.Module, list[OpCall]] = {}
    for call in rw.calls():
        if call.module is not None and (call.kind in LAYERS or opaque_layer(call) is not None):
            found.setdefault(call.module, []).append(call)
    paths = [str(calls[0].node.target) for calls in found.values()]
    _check_globs(layers, paths, "layers")
    _check_globs(exclude, paths, "exclude")
    guard = _Guard(rw)
    chosen = []
    for path, (module, calls) in zip(paths, found.items(), strict=True):
        reason = _left_out(path, layers, exclude) or guard.unfit(calls[0])
        if reason is None:
            chosen.append(Candidate(path, module, tuple(calls)))
            continue
        for call in calls:
            rw.refuse(rule, call.node, reason)
    return chosen


def refuse(rw: Rewriter, rule: str, candidate: Candidate, reason: str) -> None:
    """Record that every call of a candidate is left alone, and why."""
    for node in candidate.nodes:
        rw.refuse(rule, node, reason)


def set_weight(rw: Rewriter, rule: str, candidate: Candidate, weight: Tensor) -> None:
    """Let all calls of a candidate call a layer that differs in its weight alone, which trains as the old one did."""
    twin = copy_module(candidate.module)
    twin._parameters["weight"] = nn.Parameter(weight, requires_grad=candidate.weight.requires_grad)
    with rw.rule(rule, *candidate.nodes):
        for path in dict.fromkeys(str(node.target) for node in candidate.nodes):
            rw.exchange_module(path, twin)
        for node in candidate.nodes:
            rw.update(node)  # changes nothing but what is known of its origin


class _Guard:
    """Says what makes a layer's weight unfit to be exchanged; looks at the whole graph once."""

    def __init__(self, rw: Rewriter) -> None:
        self._rw = rw
        self._inside: dict[int, fx.Node] = {}  # modules that are part of another called module
        self._read: dict[int, fx.Node] = {}  # tensors that the graph reads by name
        for node in rw.graph.nodes:
            module = rw.module_of(node)
            if module is not None and module._modules:
                self._inside |= {id(part): node for part in list(module.modules())[1:]}
            if node.op == "get_attr":
                self._read[id(read_attribute(rw.gm, node))] = node

    def unfit(self, call: OpCall) -> str | None:
        opaque = opaque_layer(call)
        if opaque is not None:
            return opaque
        module, path = call.module, str(call.node.target)
        assert module is not None
        if id(module) in self._inside:
            return f"`{path}` is also called by `{self._inside[id(module)].target}`, of which it is a part"
        shared = shares_weight(call, self._rw)
        if shared is not None:
            return shared
        for name, tensor in module.named_parameters():
            if id(tensor) in self._read:
                return f"`{path}.{name}` is also read by `{self._read[id(tensor)].name}`"
            if not tensor.is_floating_point():
                return f"`{path}.{name}` is {tensor.dtype}"
            if not bool(tensor.isfinite().all()):
                return f"`{path}.{name}` is not finite"
        return None if call.module is not None and cast(Tensor, module.weight).numel() else f"`{path}` has no weights"


def _left_out(path: str, layers: tuple[str, ...], exclude: tuple[str, ...]) -> str | None:
    for glob in exclude:
        if fnmatch.fnmatchcase(path, glob):
            return f"`{path}` is excluded by {glob!r}"
    if not any(fnmatch.fnmatchcase(path, glob) for glob in layers):
        return f"`{path}` is not among the chosen layers"
    return None


def _check_globs(globs: tuple[str, ...], paths: list[str], option: str) -> None:
    for glob in globs:
        if glob != "*" and not any(fnmatch.fnmatchcase(path, glob) for path in paths):
            raise InputError(f"the glob {glob!r} matches no convolution or linear layer", where=f"the option {option}",
                             fix=nearest(glob.replace("*", "").strip("."), paths))  # fmt: skip


def input_last(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a view of ``weight`` whose last dimension runs over the inputs of one output."""
    if isinstance(module, _ConvNd) and module.transposed:
        grouped = weight.reshape(module.groups, module.in_channels // module.groups, *weight.shape[1:])
        return grouped.movedim(1, -1)
    return weight.movedim(1, -1)


def input_as_before(module: nn.Module, rows: Tensor) -> Tensor:
    """Undo :func:`input_last`."""
    back = rows.movedim(-1, 1)
    if isinstance(module, _ConvNd) and module.transposed:
        return back.reshape(module.in_channels, *back.shape[2:])
    return back
