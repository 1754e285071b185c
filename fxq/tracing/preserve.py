"""The state of a model's Python objects, kept while its ``forward`` runs on traced values and put back after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

_CONTAINERS = (dict, list, set)


@dataclass(frozen=True)
class ModuleState:
    """The attributes of one module, and the contents of those that are plain containers."""

    path: str
    module: nn.Module
    attributes: dict[str, Any]
    contents: dict[str, Any]


@dataclass(frozen=True)
class Change:
    """An attribute that ``forward`` bound, rebound, deleted or filled; ``None`` for a value that is not there."""

    path: str
    attribute: str
    before: Any
    after: Any


def capture_state(model: nn.Module) -> list[ModuleState]:
    """Return the attributes of every module of ``model``: buffers, parameters, hooks, mode, everything else."""
    states = []
    for path, module in model.named_modules():
        attributes = dict(module.__dict__)
        contents = {name: value.copy() for name, value in attributes.items() if isinstance(value, _CONTAINERS)}
        states.append(ModuleState(path, module, attributes, contents))
    return states


def restore_state(states: list[ModuleState]) -> None:
    """Put every module back to its captured state. Attributes keep their identity and their order."""
    for state in states:
        state.module.__dict__.clear()
        state.module.__dict__.update(state.attributes)
        for name, content in state.contents.items():
            _refill(state.attributes[name], content)


def restore_buffers(states: list[ModuleState]) -> None:
    """Put the buffers alone back: under each name the tensor that was there. New ones stay, as the graph reads them."""
    for state in states:
        state.attributes["_buffers"].update(state.contents["_buffers"])


def changes_since(states: list[ModuleState]) -> list[Change]:
    """Return what differs now from the captured state, module by module."""
    changes = []
    for state in states:
        now = state.module.__dict__
        for name in {**state.attributes, **now}:
            if _differs(name, state, now):
                before = state.contents.get(name, state.attributes.get(name))
                changes.append(Change(state.path, name, before, now.get(name)))
    return changes


@contextmanager
def preserved(model: nn.Module) -> Iterator[list[ModuleState]]:
    """Within this context ``forward`` may change attributes of ``model``; on leaving it they are as they were."""
    states = capture_state(model)
    try:
        yield states
    finally:
        restore_state(states)


def _differs(name: str, state: ModuleState, now: dict[str, Any]) -> bool:
    if name not in now or name not in state.attributes:
        return True
    if now[name] is not state.attributes[name]:
        return True
    return name in state.contents and not _same_items(now[name], state.contents[name])


def _same_items(now: Any, then: Any) -> bool:
    """Compare by identity: ``==`` on tensors or on traced values means something else."""
    if len(now) != len(then):
        return False
    if isinstance(now, dict):
        return all(key in then and then[key] is value for key, value in now.items())
    if isinstance(now, set):
        return {id(item) for item in now} == {id(item) for item in then}
    return all(a is b for a, b in zip(now, then, strict=True))


def _refill(container: Any, content: Any) -> None:
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
