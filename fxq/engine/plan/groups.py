"""How many images each operation takes at once.

Where weights are large and maps small, several images share the reading of the weights; where maps are large, one image
at a time stays in the cache. The bytes that an operation moves beyond the cache for each image, in groups of g images:

    weights / g + activations * (1 where g images of them exceed the cache, else 0)

Groups grow along the network. The sizes with the least sum are found by dynamic programming over operations in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxq.engine.plan.builder import Step

#: Bytes of activations that stay near a core: half of the L2 cache of 1 MiB that small server cores have.
NEAR = 512 * 1024


@dataclass(frozen=True)
class Groups:
    """Which group sizes a plan may use, and how many of them.

    Attributes:
        sizes: each a multiple of the one before.
        levels: how many different ones a plan uses at most.
        near: bytes of activations that count as cached.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8)
    levels: int = 2
    near: int = NEAR


#: What plans use unless told otherwise.
DEFAULT = Groups()


def choose_groups(steps: Sequence[Step], options: Groups = DEFAULT) -> list[int]:
    """Return the group size of each step, never smaller than the one before."""
    if not steps:
        return []
    costs = [[_cost(step, size, options.near) for size in options.sizes] for step in steps]
    count = len(options.sizes)
    # best[k][s]: the least cost so far with k + 1 different sizes, the last of them sizes[s]
    best = [[math.inf] * count for _ in range(options.levels)]
    best[0] = list(costs[0])
    back: list[list[list[tuple[int, int]]]] = []
    for cost in costs[1:]:
        new = [[math.inf] * count for _ in range(options.levels)]
        came = [[(0, 0)] * count for _ in range(options.levels)]
        for k in range(options.levels):
            for s in range(count):
                choices = [(best[k][s], (k, s))] + [(best[k - 1][p], (k - 1, p)) for p in range(s) if k]
                least, came[k][s] = min(choices)
                new[k][s] = least + cost[s]
        best = new
        back.append(came)
    _, k, s = min((best[k][s], k, s) for k in range(options.levels) for s in range(count))
    found = [s]
    for came in reversed(back):
        k, s = came[k][s]
        found.append(s)
    return [options.sizes[s] for s in reversed(found)]


def _cost(step: Step, size: int, near: int) -> float:
    activations = sum(math.prod(r.size) * (4 if r.buffer.type else 1) for r in step.regions)
    return step.weight_bytes / size + (activations if activations * size > near else 0)
