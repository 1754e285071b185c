from __future__ import annotations

import random

from fxq.engine.plan.arena import ALIGNMENT, Life, lives, place


def test_buffers_that_live_together_do_not_share_bytes() -> None:
    rng = random.Random(0)
    for _ in range(50):
        buffers = {}
        for i in range(30):
            first = rng.randrange(40)
            buffers[i] = Life(rng.randrange(1, 5000), first, first + rng.randrange(10))
        offsets, total = place(buffers)
        for a in buffers:
            assert offsets[a] % ALIGNMENT == 0
            assert offsets[a] + buffers[a].size <= total
            for b in buffers:
                together = buffers[a].first <= buffers[b].last and buffers[b].first <= buffers[a].last
                if a < b and together:
                    apart = offsets[a] + buffers[a].size <= offsets[b] or offsets[b] + buffers[b].size <= offsets[a]
                    assert apart


def test_buffers_that_follow_each_other_share_bytes() -> None:
    chain = {i: Life(1000, i, i + 1) for i in range(20)}
    assert place(chain)[1] <= 2 * 1024


def test_a_value_that_crosses_levels_lives_through_all_repetitions() -> None:
    levels = [0, 0, 1, 1]
    uses = {7: ([1], [2]), 8: ([0], [1]), 9: ([2], [3])}
    assert lives(uses, levels) == {7: (0, 2), 8: (0, 1), 9: (2, 3)}
