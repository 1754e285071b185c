"""Options for some layers: which those are, and what they get."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import fx, nn

from fxq.errors import InputError, nearest
from fxq.ir.identify import Identifier, OpCall
from fxq.ir.ops import FUNCTIONS, STATEFUL_MODULES, STATELESS_MODULES
from fxq.ir.provenance import INFO_KEY, node_info
from fxq.quant.options import Options

_OPTIONS: Final = ("activation", "weight", "weight_range", "momentum", "percentile")
Where = str | type[nn.Module] | Callable[..., Any]


@dataclass(frozen=True)
class Override:
    """Other options for the layers that ``where`` picks; what is None stays as the recipe has it.

    Attributes:
        where: a glob over module paths (``"layer4.*"``; the path of a module stands for all inside it), a module class
            (``nn.Linear``) or a function (``torch.add``), in whichever way the model writes the operation.
        quantise: False leaves the layers in float.
        activation, weight, weight_range, momentum, percentile: as in :class:`fxq.Recipe`; those of activations speak of
            what the layers return.

    Raises:
        InputError: an option is unknown or out of range.
    """

    where: Where
    quantise: bool = True
    activation: str | None = None
    weight: str | None = None
    weight_range: str | None = None
    momentum: float | None = None
    percentile: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.where) and not (isinstance(self.where, str) and self.where):
            raise InputError(f"an override is for {self.where!r}", fix="give a path glob, a class or a function")
        if not isinstance(self.quantise, bool):
            raise InputError(f"quantise is {self.quantise!r}", where=f"the override for `{self.name}`",
                             fix="give True or False")  # fmt: skip
        self.applied_to(Options())  # checks the options

    @property
    def name(self) -> str:
        """How a report names it."""
        return self.where if isinstance(self.where, str) else self.where.__name__

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the options that it sets."""
        return tuple(name for name in _OPTIONS if getattr(self, name) is not None)

    def picks(self, call: OpCall) -> bool:
        """Whether ``call`` is one of the layers."""
        if isinstance(self.where, str):
            return _path_matches(self.where, call.node)
        return call.kind is self.where or call.kind in _kinds(self.where) or _is_fused(call, self.where)

    def applied_to(self, options: Options) -> Options:
        """Return ``options`` with what this override sets."""
        return replace(options, **{name: getattr(self, name) for name in self.options})


class Choices:
    """The options of every node of a graph under a list of overrides; a later override wins."""

    def __init__(self, gm: fx.GraphModule, options: Options, overrides: Iterable[Override]) -> None:
        self._options, self._overrides = options, tuple(overrides)
        self._identify = Identifier(gm)

    def options(self, node: fx.Node) -> Options:
        """The options for what ``node`` returns and for its weights."""
        found = self._options
        for override in self._picking(node):
            found = override.applied_to(found)
        return found

    def why_float(self, node: fx.Node) -> str | None:
        """Why the recipe leaves ``node`` in float, or None."""
        last = next(iter(reversed(self._picking(node))), None)
        return None if last is None or last.quantise else f"the recipe keeps `{last.name}` in float"

    def _picking(self, node: fx.Node) -> list[Override]:
        if not node.op.startswith("call_") or not self._overrides:
            return []
        call = self._identify(node)
        return [o for o in self._overrides if o.picks(call)]


def check_overrides(gm: fx.GraphModule, overrides: Iterable[Override]) -> None:
    """Raise InputError for an override that picks nothing in ``gm``; the nearest names are suggested."""
    identify = Identifier(gm)
    calls = [identify(n) for n in gm.graph.nodes if n.op.startswith("call_")]
    for override in overrides:
        if any(override.picks(c) for c in calls):
            continue
        if isinstance(override.where, str):
            fix = nearest(override.where, {_path(c.node) for c in calls} - {""})
        else:
            fix = nearest(override.name, {_kind_name(c) for c in calls})
        raise InputError(f"the override for `{override.name}` matches no layer", where="recipe",
                         why="what is folded or fused into a layer, as norms and activations are, goes by that layer",
                         fix=fix)  # fmt: skip


def _path(node: fx.Node) -> str:
    return node_info(node).module_path if INFO_KEY in node.meta else str(node.target)


def _path_matches(pattern: str, node: fx.Node) -> bool:
    path = _path(node)
    return fnmatch.fnmatchcase(path, pattern) or path.startswith(f"{pattern}.") or node.name == pattern


def _kinds(where: Any) -> set[Any]:
    tables: tuple[Mapping[Any, Any], ...] = (STATEFUL_MODULES, STATELESS_MODULES, FUNCTIONS)
    found = [table[where] for table in tables if where in table]
    return {kind if isinstance(kind, str) else kind[0] for kind in found}


def _is_fused(call: OpCall, where: Any) -> bool:
    return isinstance(where, type) and isinstance(call.module, where)


def _kind_name(call: OpCall) -> str:
    """The name by which users know the kind of a call: fxq's layers go by the layer of torch.nn that they extend."""
    if isinstance(call.kind, str):
        return call.kind
    bases = call.kind.__mro__ if isinstance(call.kind, type) else (call.kind,)
    known = next((base for base in bases if base.__module__.startswith("torch.nn.modules.")), call.kind)
    return getattr(known, "__name__", str(known))
