"""The stages that a graph goes through, and where a graph module keeps its own."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from torch import fx

_KEY = "fxq"


class Stage(enum.IntEnum):
    """How far a graph has come; the order is the order of compilation."""

    FLOAT = 0
    CANONICAL = 1
    FUSED = 2
    OBSERVED = 3
    QDQ = 4
    INT8 = 5

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class GraphState:
    """What a graph module knows of itself: its stage, and the first node id that was never used in its history."""

    stage: Stage = Stage.FLOAT
    next_id: int = 0


def graph_state(gm: fx.GraphModule) -> GraphState:
    """Return the state of ``gm``; a graph module that fxq has not seen is at stage FLOAT."""
    state = gm.meta.get(_KEY)
    return state if isinstance(state, GraphState) else GraphState()


def set_graph_state(gm: fx.GraphModule, **changes: object) -> None:
    """Update the state of ``gm`` in place."""
    gm.meta[_KEY] = replace(graph_state(gm), **changes)  # type: ignore[arg-type]


def stage_of(gm: fx.GraphModule) -> Stage:
    """Return the stage of ``gm``."""
    return graph_state(gm).stage
