"""Options that name layers: globs over module paths, and the groups that they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from fxq.errors import InputError, nearest
from fxq.structure.group import Group

T = TypeVar("T")


def matching(pattern: str, groups: Sequence[Group], option: str) -> tuple[Group, ...]:
    """Return the groups whose channels a layer that matches ``pattern`` computes or works on one by one.

    A layer that only reads a group's channels does not lead to that group: ``layer2.0.conv1`` means the channels that
    come out of it. The root's own parameters go by their names.

    Raises:
        InputError: no layer of the model matches; the nearest names are suggested.
    """
    if not isinstance(pattern, str):
        raise InputError(f"{option} holds {pattern!r}", why="layers are named by globs over their module paths",
                         fix="give strings, such as 'layer4.*'")  # fmt: skip
    found = tuple(g for g in groups if _touches(pattern, g, readers=False))
    if found or any(_touches(pattern, g, readers=True) for g in groups):
        return found
    raise InputError(f"{option}: no layer with channels matches {pattern!r}", fix=_suggestion(pattern, groups))


def by_group(values: Mapping[str, T], groups: Sequence[Group], option: str) -> dict[str, list[tuple[str, T]]]:
    """Return for each group that a glob means: the globs and what they say, in the order of ``values``.

    Raises:
        InputError: a glob matches nothing, or only channels of which none can be removed: the reason is given.
    """
    out: dict[str, list[tuple[str, T]]] = {}
    for pattern, value in values.items():
        found = matching(pattern, groups, option)
        if not any(g.prunable for g in found):
            raise InputError(f"{option}: nothing that {pattern!r} matches can be pruned", why=_reasons(found),
                             fix="leave it out")  # fmt: skip
        for group in found:
            out.setdefault(group.name, []).append((pattern, value))
    return out


def protected(patterns: Iterable[str], groups: Sequence[Group]) -> dict[str, str]:
    """Return the groups that ``protect`` names, each with the glob that did.

    Raises:
        InputError: ``protect`` is one string, or a glob matches nothing.
    """
    if isinstance(patterns, str):
        raise InputError(f"protect is the string {patterns!r}", fix=f"give a list of globs: protect=[{patterns!r}]")
    return {g.name: pattern for pattern in patterns for g in matching(pattern, groups, "protect")}


def paths(group: Group, readers: bool) -> set[str]:
    """Module paths of the members, the names of the root's own parameters; with or without layers that only read."""
    return {m.path or m.parameter for m in group.members if readers or m.role != "in"} | {group.name}


def _touches(pattern: str, group: Group, readers: bool) -> bool:
    return any(fnmatchcase(path, pattern) for path in paths(group, readers))


def _reasons(found: Iterable[Group]) -> str:
    reasons = list(dict.fromkeys(g.reason or "one unit is all it has" for g in found))
    return "; ".join(reasons[:3]) or "it only reads the channels of other layers"


def _suggestion(pattern: str, groups: Sequence[Group]) -> str:
    below = f"{pattern}.*"
    if any(_touches(below, g, readers=True) for g in groups):
        return f"{pattern!r} is a container: {below!r} matches the layers in it"
    return nearest(pattern, set().union(*(paths(g, True) for g in groups)))
