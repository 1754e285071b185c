"""The multiples of channels that a layer may keep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fxq.errors import InputError
from fxq.pruning.selection.globs import by_group
from fxq.pruning.selection.ladder import Ladder
from fxq.structure.group import Group

RoundTo = int | str | Mapping[str, int]
#: How many counts a dense group should have to choose from.
_STEPS = 4


def block_of(target: str) -> int:
    """The number of channels that ``target``'s kernels work on at once.

    oneDNN blocks channels by the lanes of a vector of 32-bit sums: 16 with AVX-512 or AMX, 8 with AVX2. A rest costs as
    much as a whole block: a 3x3 convolution of 28x28 pixels in float32 takes 0.20 ms with 33 to 48 channels and 0.32 ms
    with 49 to 64 on one core with AVX-512. The native engine has the same vectors. ``reference`` has no such blocks: 1.
    """
    if target not in ("native", "onednn"):
        return 1
    return 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8


def multiples(round_to: RoundTo, groups: Sequence[Group], block: int) -> dict[str, list[int]]:
    """Return for each group the multiples of units that may stay, the preferred first; see :func:`align`.

    Args:
        round_to: a number of channels, kept to strictly: a group that is no larger stays whole. A dict of globs and
            numbers; where several globs match, the last counts, and where none does, 1. ``"auto"``: ``block``,
            then its halves.
        block: the number of channels that kernels work on at once.

    Raises:
        InputError: ``round_to`` is none of these, a number is below 1, or a glob matches nothing.
    """
    if isinstance(round_to, str):
        if round_to != "auto":
            raise InputError(f"round_to={round_to!r} is not known", fix="give 'auto', a number, or a dict of globs")
        halves = [block >> i for i in range(block.bit_length())]
        return {g.name: [_in_units(n, g) for n in halves] for g in groups}
    if isinstance(round_to, Mapping):
        found = by_group({glob: _checked(n) for glob, n in round_to.items()}, groups, "round_to")
        chosen = {name: values[-1][1] for name, values in found.items()}
        return {g.name: [_in_units(chosen.get(g.name, 1), g)] for g in groups}
    return {g.name: [_in_units(_checked(round_to), g)] for g in groups}


def align(ladder: Ladder, candidates: Sequence[int]) -> NDArray[np.bool_]:
    """Return which counts are multiples: of the first candidate that leaves enough of them, else of the last.

    Enough are four in the dense group, or as many as there are at all; the whole group counts always. So layers can be
    pruned that are small, or grouped in ways that no larger multiple fits.
    """
    enough = min(_STEPS * ladder.size / ladder.dense, len(ladder.counts))
    for multiple in candidates:
        aligned: NDArray[np.bool_] = (ladder.counts % multiple == 0) | (ladder.counts == ladder.size)
        if np.count_nonzero(aligned) >= enough:
            break
    return aligned


def _checked(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"round_to is {value!r}", fix="give a number of channels that is 1 or more, or 'auto'")
    return value


def _positions(group: Group) -> int:
    """How many channels of the leader each unit stands for; 1 where they differ."""
    units = group.members[0].units
    counts = np.bincount(units[units >= 0], minlength=group.size)
    return int(counts[0]) if counts[0] > 0 and (counts == counts[0]).all() else 1


def _in_units(channels: int, group: Group) -> int:
    """The smallest number of units that stand for a multiple of ``channels``."""
    positions = _positions(group)
    return math.lcm(channels, positions) // positions
