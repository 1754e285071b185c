"""What tracing did not follow into the graph, and why: plain data that pickles and compares."""

from __future__ import annotations

from dataclasses import dataclass

RECORD_KEY = "fxq_trace"


@dataclass(frozen=True)
class OpaqueLeaf:
    """A module that the graph calls as a whole although it is not one of torch.nn's.

    Args:
        path: its path in the model, ``"layer1.0.attention"``.
        type_name: the name of its class.
        reason: why it was not traced through, in plain words.
        source: ``"file.py:123"``, the line that could not be traced; the class's ``forward`` where there is none.
    """

    path: str
    type_name: str
    reason: str
    source: str


@dataclass(frozen=True)
class SpecialisedArgument:
    """An argument (or a part of one: ``batch['flag']``) whose value became part of the graph.

    Args:
        name: the argument.
        value: ``repr`` of the value.
        reason: where the value came from.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class TraceRecord:
    """``gm.meta["fxq_trace"]``: the modules left opaque, the arguments made constant, and other remarks."""

    leaves: tuple[OpaqueLeaf, ...] = ()
    specialised: tuple[SpecialisedArgument, ...] = ()
    notes: tuple[str, ...] = ()

    def leaf(self, path: str) -> OpaqueLeaf | None:
        """Return the record of the opaque module at ``path``, or ``None``."""
        return next((leaf for leaf in self.leaves if leaf.path == path), None)
