from __future__ import annotations

import pytest

from fxq.errors import InputError
from fxq.pruning.selection.limits import check_ratio, kept_count
from tests.pruning.selection.by_hand import choose, group


@pytest.mark.parametrize(
    ("size", "ratio", "kept"), [(8, 0.5, 4), (7, 0.5, 4), (100, 0.29, 71), (10, 0.3, 7), (3, 0.0, 3), (64, 0.99, 1)]
)
def test_the_ratio_is_rounded_down(size: int, ratio: float, kept: int) -> None:
    assert kept_count(size, ratio) == kept


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, "half", None, True, float("nan")])
def test_ratios_outside_the_range(ratio: object) -> None:
    with pytest.raises(InputError, match="at least 0 and less than 1"):
        check_ratio(ratio)


def test_bounds_limit_the_choice() -> None:
    found = choose(group("a", 10), group("b", 10), bounds={"a": (0.3, 0.55)})
    assert found.ladders["a"].allowed.tolist() == [3, 4, 5]
    assert found.ladders["b"].allowed.tolist() == list(range(1, 11))


def test_bounds_of_several_globs_hold_together() -> None:
    found = choose(group("net.a", 10), bounds={"net.*": (0.2, 1.0), "*.a": (0.0, 0.4)})
    assert found.ladders["net.a"].allowed.tolist() == [2, 3, 4]


def test_contradictory_bounds() -> None:
    with pytest.raises(InputError, match=r"(?s)bounds contradict.*group `net.a`.*at least 0.6 and at most 0.4"):
        choose(group("net.a", 10), bounds={"net.*": (0.6, 1.0), "*.a": (0.0, 0.4)})
    with pytest.raises(InputError, match="bounds and protect contradict"):
        choose(group("a", 10), bounds={"a": (0.0, 0.4)}, protect=["a"])
    with pytest.raises(InputError, match=r"bounds\['a'\] is \(0.6, 0.5\)"):
        choose(group("a", 10), bounds={"a": (0.6, 0.5)})
    with pytest.raises(InputError, match=r"bounds\['a'\] is 0.5"):
        choose(group("a", 10), bounds={"a": 0.5})


def test_a_bound_that_the_structure_forbids() -> None:
    with pytest.raises(InputError, match="0 to 2 of 8 units are asked for; it may keep 4, 5, 6, 7, 8"):
        choose(group("a", 8, fixed=[0, 1, 2, 3]), bounds={"a": (0.0, 0.25)})


def test_protected_groups_offer_no_choice() -> None:
    found = choose(group("stem", 4), group("a", 4), group("b", 4, fixed=range(4), reason="output"), protect=["st*"])
    assert list(found.ladders) == ["a"]
    assert found.protected == {"stem": "st*"}


def test_a_layer_means_the_channels_that_come_out_of_it() -> None:
    groups = group("first", 8, reader="second"), group("second", 8, reader="last")
    found = choose(*groups, ratios={"second": 0.25})
    assert found.ratios == {"second": 0.25}


def test_the_last_ratio_counts() -> None:
    groups = [group(f"net.{i}", 8) for i in range(3)]
    assert choose(*groups, ratios={"*": 0.5, "net.1": 0.25}).ratios == {"net.0": 0.5, "net.1": 0.25, "net.2": 0.5}


@pytest.mark.parametrize("options", [{"protect": ["frist"]}, {"ratios": {"frist": 0.5}}, {"bounds": {"frist": (0, 1)}},
                                     {"round_to": {"frist": 8}}])  # fmt: skip
def test_a_glob_that_matches_nothing(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=rf"(?s){next(iter(options))}: .*'frist'.*did you mean 'first'"):
        choose(group("first", 8, reader="second"), **options)


def test_a_container_is_no_layer() -> None:
    with pytest.raises(InputError, match=r"'layer1' is a container: 'layer1.\*' matches"):
        choose(group("layer1.conv", 8), protect=["layer1"])


def test_a_string_is_no_list_of_globs() -> None:
    with pytest.raises(InputError, match=r"protect=\['first'\]"):
        choose(group("first", 8), protect="first")


def test_a_ratio_for_what_cannot_be_pruned() -> None:
    groups = group("first", 8, reader="fc"), group("fc", 4, fixed=range(4), reason="the model returns it")
    with pytest.raises(InputError, match=r"(?s)'fc' matches can be pruned.*the model returns it"):
        choose(*groups, ratios={"fc": 0.5})
    assert choose(*groups, protect=["fc"]).protected == {"fc": "fc"}
