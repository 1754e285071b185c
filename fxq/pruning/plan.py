"""The choice that a prune made, as a record that replays on other weights of the same model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from fxq.errors import InputError, nearest
from fxq.structure.group import Group, Mask

_FORMAT = "fxq-plan"
_VERSION = 1


@dataclass(frozen=True)
class KeptUnits:
    """What stays of one group: ``kept`` are the units' indices, of ``size`` that it had."""

    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Which units of which groups stay, and the model that this was decided for.

    Attributes:
        groups: by the group's name; groups that stay whole are left out.
        shapes: the names and shapes of the dense model's parameters.
    """

    groups: Mapping[str, KeptUnits]
    shapes: Mapping[str, tuple[int, ...]]

    def to_json(self) -> str:
        """Return the plan as text."""
        groups = {name: {"size": g.size, "kept": list(g.kept)} for name, g in self.groups.items()}
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return json.dumps({"format": _FORMAT, "version": _VERSION, "groups": groups, "shapes": shapes})

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that :meth:`to_json` wrote.

        Raises:
            InputError: ``text`` is none.
        """
        try:
            data = json.loads(text)
        except (TypeError, ValueError) as error:
            raise _malformed(str(error)) from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise _malformed("it does not say that it is one")
        if data.get("version") != _VERSION:
            raise _malformed(f"it is of version {data.get('version')!r}, this fxq reads {_VERSION}")
        try:
            groups = {str(name): _kept_units(name, g) for name, g in data["groups"].items()}
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in data["shapes"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _malformed(f"{type(error).__name__}: {error}") from error
        return Plan(groups, shapes)

    def masks(self, groups: Sequence[Group]) -> dict[str, Mask]:
        """Return which units stay, for the groups of the same model.

        Raises:
            InputError: the plan names a group that is not there or has another size, or removes units that must stay.
        """
        known = {g.name: g for g in groups}
        out = {}
        for name, units in self.groups.items():
            group = known.get(name)
            if group is None:
                raise InputError(f"the plan is of another model: there is no group {name!r} here",
                                 fix=nearest(name, known))  # fmt: skip
            out[name] = _mask(group, units)
        return out

    def check(self, model: nn.Module) -> None:
        """See that ``model`` is the one that the plan was made for, whatever its weights.

        Raises:
            InputError: its parameters have other names or shapes.
        """
        here = shapes_of(model)
        fix = "replay it on the dense model that it was made for; weights may differ"
        for name, shape in self.shapes.items():
            if name not in here:
                raise InputError("the plan is of another model", fix=fix, why=f"there is no parameter {name!r} here")
            if here[name] != shape:
                raise InputError("the plan is of another model", fix=fix,
                                 why=f"`{name}` is {list(shape)} there and {list(here[name])} here")  # fmt: skip
        more = sorted(set(here) - set(self.shapes))
        if more:
            raise InputError("the plan is of another model", fix=fix, why=f"it knows no parameter {more[0]!r}")


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the parameters, by name."""
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def make_plan(model: nn.Module, steps: Iterable[Mapping[str, Mask]]) -> Plan:
    """Return the plan of one prune of ``model``.

    Args:
        steps: for each step in turn the masks of the groups, in terms of the units that the step before had left.
    """
    kept: dict[str, np.ndarray[Any, np.dtype[np.int64]]] = {}
    sizes: dict[str, int] = {}
    for masks in steps:
        for name, mask in masks.items():
            sizes.setdefault(name, len(mask))
            kept[name] = kept.get(name, np.arange(len(mask)))[mask]
    groups = {n: KeptUnits(sizes[n], tuple(units.tolist())) for n, units in kept.items() if len(units) < sizes[n]}
    return Plan(groups, shapes_of(model))


def _kept_units(name: object, data: Mapping[str, Any]) -> KeptUnits:
    size, kept = int(data["size"]), tuple(int(u) for u in data["kept"])
    if not kept or list(kept) != sorted(set(kept)) or not 0 <= kept[0] <= kept[-1] < size:
        raise ValueError(f"the units of group {name!r} are not rising numbers below {size}")
    return KeptUnits(size, kept)


def _mask(group: Group, units: KeptUnits) -> Mask:
    if units.size != group.size:
        raise InputError("the plan is of another model", where=f"group `{group.name}`",
                         why=f"it has {units.size} units there and {group.size} here")  # fmt: skip
    mask = np.zeros(group.size, dtype=np.bool_)
    mask[list(units.kept)] = True
    if (group.fixed & ~mask).any():
        raise InputError("the plan removes units that must stay", where=f"group `{group.name}`", why=group.reason)
    for partition in group.balance:
        left = {int(mask[partition == part].sum()) for part in np.unique(partition[partition >= 0])}
        if len(left) > 1 or 0 in left:
            raise InputError("the plan leaves the parts of a grouped layer unequal", where=f"group `{group.name}`")
    if not all(mask[units].any() for units in group.cover):
        raise InputError("the plan leaves a layer without channels", where=f"group `{group.name}`")
    return mask


def _malformed(why: str) -> InputError:
    return InputError("this text is no plan of fxq's", why=why, fix="give what Plan.to_json() returned")
