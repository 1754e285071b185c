from __future__ import annotations

import pytest
import torch

from fxq.errors import InputError
from fxq.pruning.selection.limits import Limits, choices
from fxq.pruning.selection.rounding import block_of
from tests.pruning.selection.by_hand import choose, group, parts, rising


def allowed(size: int, round_to: object, block: int = 1, **options: object) -> list[int]:
    return choose(group("a", size, **options), round_to=round_to, block=block).ladders["a"].allowed.tolist()  # type: ignore[arg-type]


def test_multiples_and_the_whole_group() -> None:
    assert allowed(20, 8) == [8, 16, 20]
    assert allowed(16, 8) == [8, 16]
    assert allowed(3, 1) == [1, 2, 3]


def test_a_group_no_larger_than_the_multiple_stays_whole() -> None:
    assert allowed(8, 8) == [8]
    assert allowed(6, 8) == [6]


def test_channels_count_and_not_units() -> None:
    assert allowed(12, 16, positions=8) == [2, 4, 6, 8, 10, 12]
    assert allowed(4, 16, positions=64) == [1, 2, 3, 4]


def test_multiples_of_balanced_parts() -> None:
    assert allowed(24, 8, balance=[parts(24, 3)]) == [24]
    assert allowed(48, 8, balance=[parts(48, 3)]) == [24, 48]
    assert allowed(12, 8, balance=[parts(12, 6)]) == [12]


def test_by_glob() -> None:
    found = choose(group("net.a", 16), group("net.b", 16), group("c", 4), round_to={"net.*": 8, "net.b": 4}).ladders
    assert found["net.a"].allowed.tolist() == [8, 16]
    assert found["net.b"].allowed.tolist() == [4, 8, 12, 16]
    assert found["c"].allowed.tolist() == [1, 2, 3, 4]


def test_blocks_of_targets() -> None:
    assert block_of("reference") == 1
    assert block_of("onednn") == (16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8)


def test_auto_is_the_block_in_large_groups() -> None:
    assert allowed(64, "auto") == list(range(1, 65))
    assert allowed(64, "auto", 16) == [16, 32, 48, 64]
    assert allowed(16, "auto", 16) == [4, 8, 12, 16]
    assert allowed(3, "auto", 16) == [1, 2, 3]
    assert allowed(104, "auto", 16, balance=[parts(104, 13)]) == [26, 52, 78, 104]
    assert allowed(24, "auto", 16, balance=[parts(24, 12)]) == [12, 24]


def test_auto_in_later_steps_is_what_it_was_in_the_first() -> None:
    g = group("a", 48)
    found = choices([g], rising(g), Limits(round_to="auto", block=16), {"a": 64})
    assert found.ladders["a"].allowed.tolist() == [16, 32, 48]


@pytest.mark.parametrize("value", [0, -8, 2.0, True, None, "8", {"a": 0}])
def test_what_is_no_multiple(value: object) -> None:
    with pytest.raises(InputError, match="round_to"):
        allowed(8, value)
