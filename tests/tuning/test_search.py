"""The search alone, on a tester that knows which sets of layers hold."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console

import fxq
from fxq.tuning.budget import Budget, OutOfTimeError, SearchEndedError
from fxq.tuning.candidates import candidates, describe, key_of, quick
from fxq.tuning.journal import Journal
from fxq.tuning.layers import Layer, int8_layers, select
from fxq.tuning.ranking import noise_of, ranked
from fxq.tuning.search import Search
from fxq.tuning.sensitivity_result import LayerSensitivity, Sensitivity, SensitivityTimes
from fxq.tuning.trials import Goal, Trial, TuningReport
from fxq.tuning.workbench import Workbench

START = fxq.Recipe("int8", activation="mse", corrections=("bias",))


def _layer(name: str, penalty: float = 1.0) -> Layer:
    return Layer(name, (name,), "conv2d", 10, penalty)


@dataclass
class FakeTester:
    """Answers as a model would of which ``needed`` layers must be in float."""

    holds: Callable[[set[str]], bool]
    drops: dict[str, float] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    recipes: list[fxq.Recipe] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    chosen: int = 0
    budget: Budget = field(default_factory=lambda: Budget(None, 0.0))

    def try_(
        self, recipe: fxq.Recipe, float_layers: tuple[str, ...] = (), lost: float = 0.0, share: float = 1.0
    ) -> Trial:
        self.asked.append(float_layers)
        self.recipes.append(recipe)
        self.shares.append(share)
        drop = self.drops.get(describe(recipe), 1.0)
        holds = self.holds(set(float_layers)) or drop <= 0.1
        self.chosen = 1 if holds else self.chosen
        return Trial(len(self.asked), describe(recipe), float_layers, 1.0 - drop, drop, holds)


def _search(tester: FakeTester) -> Search:
    return Search(tester, Journal(None, {}), [])  # type: ignore[arg-type]


def _kept(needed: Iterable[str], names: str) -> tuple[list[str] | None, FakeTester]:
    tester = FakeTester(lambda given: set(needed) <= given)
    search = _search(tester)
    found = search._fewest(START, [_layer(n, float(i)) for i, n in enumerate(names)])
    kept = found if found is None else search._give_back(START, found)
    return None if kept is None else [x.name for x in kept], tester


@pytest.mark.parametrize("needed", ["a", "b", "c", "ac", "bf", "h", "abcdefgh"])
def test_only_what_the_metric_needs_stays_in_float(needed):
    kept, tester = _kept(needed, "abcdefgh")
    assert kept == list(needed)
    assert len(tester.asked) <= 7 + 8  # doubling and halving, and giving back


def test_what_costs_most_in_float_goes_back_first():
    _, tester = _kept("d", "abcd")
    assert tester.asked == [("a",), ("a", "b"), ("a", "b", "c", "d"), ("a", "b", "c"), ("a", "b", "c"), ("a", "b", "d"),
                            ("a", "d"), ("d",)]  # fmt: skip


def test_nothing_holds():
    kept, tester = _kept("z", "abc")
    assert kept is None
    assert tester.asked[-1] == ("a", "b", "c")


def test_recipes_end_with_the_first_that_holds():
    tester = FakeTester(lambda given: False, {"auto, bias": 0.05})
    assert _search(tester).run(START) == "a recipe holds the metric with all layers in int8"
    assert [r.activation for r in tester.recipes][-1] == "auto"


def test_later_recipes_build_on_the_best():
    tester = FakeTester(lambda given: False, {"percentile, bias": 0.4, "percentile, bias, equalise": 0.3})
    best = _search(tester)._recipes(START)
    assert describe(best) == "percentile, bias, equalise"
    assert any(describe(r) == "percentile, weights mse, bias" for r in tester.recipes)
    assert any(describe(r) == "percentile, equalise, bias accurate" for r in tester.recipes)


def test_with_a_budget_dear_corrections_come_behind_layers():
    tester = FakeTester(lambda given: given == {"a"}, {"mse, adaround": 0.05}, budget=Budget(1e6, time.perf_counter()))
    search = _search(tester)
    search._recipes(START)
    assert not any({"bias_accurate", "adaround"} & set(r.corrections) for r in tester.recipes)
    search._with_what_is_left()
    assert describe(tester.recipes[-1]) == "mse, adaround"
    unlimited = FakeTester(lambda given: False)
    assert describe(_search(unlimited)._recipes(START)) == "mse, bias"
    assert any("adaround" in r.corrections for r in unlimited.recipes)


def test_recipes_use_half_of_a_budget_at_most():
    tester = FakeTester(lambda given: False, budget=Budget(10.0, time.perf_counter() - 6.0))
    _search(tester)._recipes(START)
    assert len(tester.asked) == 1


def test_recipes_are_cut_off_at_half_of_a_budget_and_layers_at_its_end():
    tester = FakeTester(lambda given: given == {"a"}, budget=Budget(1e6, time.perf_counter()))
    search = _search(tester)
    search._recipes(START)
    assert tester.shares[0] == 1.0  # the first may take all there is
    assert set(tester.shares[1:]) == {0.5}
    search._fewest(START, [_layer("a"), _layer("b")])
    assert tester.shares[-1] == 1.0
    with pytest.raises(OutOfTimeError):
        Budget(10.0, time.perf_counter() - 6.0).interrupt(0.5)()
    Budget(10.0, time.perf_counter() - 6.0).interrupt()()
    Budget(None, 0.0).interrupt()()


def test_a_step_is_expected_to_take_as_long_as_its_like():
    budget = Budget(100.0, time.perf_counter() - 50.0)  # 50 s are left
    budget.evaluated(20.0)
    budget.built(START, False, 10.0)
    budget.check(START)
    budget.built(replace(START, percentile=90), False, 45.0)
    budget.check()
    budget.check(START)
    budget.check(START, variant=True)
    with pytest.raises(SearchEndedError, match="the budget of 100 s is spent"):
        budget.check(replace(START, percentile=80))  # as long as the longest recipe
    budget.built(START, True, 35.0)
    with pytest.raises(SearchEndedError):
        budget.check(START, variant=True)
    Budget(None, 0.0).check(START)


def test_a_slow_model_in_float_does_not_count_once_int8_was_evaluated():
    budget = Budget(100.0, time.perf_counter() - 50.0)
    budget.evaluated(60.0, in_float=True)
    with pytest.raises(SearchEndedError):
        budget.check()
    budget.evaluated(5.0)
    budget.check()
    budget.evaluated(60.0)
    budget.evaluated(5.0)
    with pytest.raises(SearchEndedError):
        budget.check()


def test_a_recipe_is_expected_to_take_as_long_as_the_last_that_runs_the_same_graph():
    budget = Budget(100.0, time.perf_counter() - 50.0)
    budget.built(START, False, 45.0)  # it ran the data
    budget.built(replace(START, activation="auto"), False, 2.0)
    assert budget.holds(replace(START, activation="entropy"), times=10)
    assert not budget.holds(replace(START, corrections=("equalise", "bias")), times=2)


def test_candidates_keep_what_the_start_says():
    start = fxq.Recipe("int8", activation="entropy", weight_range="mse", corrections=(), weight="per_tensor")
    found = list(candidates(start, lambda: start))
    assert found[0] is start
    assert all(r.weight == "per_tensor" and r.weight_range == "mse" for r in found)
    assert len(found) == len(set(found))


def test_keys_tell_modules_apart():
    override = fxq.Override("a", quantise=False)
    recipes = [START, replace(START, percentile=99.0), replace(START, overrides=(override,))]
    keys = {key_of(r, layers) for r in recipes for layers in ((), ("a",), ("a", "b"))}
    assert len(keys) == 9
    assert key_of(START, ("a", "b")) == key_of(START, ("b", "a"))
    assert quick(replace(START, corrections=("bias_accurate", "equalise"))).corrections == ("bias", "equalise")
    assert quick(replace(START, corrections=("smooth", "adaround"))).corrections == ("smooth", "bias")


def test_ranking_weighs_noise_against_time():
    rows = [("quiet", 60.0, 20.1), ("loud", 20.0, 30.0), ("dear", 20.0, 30.0), ("only between", float("inf"), 23.0)]
    found = Sensitivity(
        20.0, None, None, tuple(LayerSensitivity(n, "", 0, a, w, w - 20, None, None, 0.0) for n, a, w in rows), 1,
        SensitivityTimes(0, 0, 0, 0, 0),
    )  # fmt: skip
    noise = noise_of(found)
    assert noise["loud"] == pytest.approx(0.01)
    assert noise["only between"] == pytest.approx(0.01 - 10**-2.3)
    layers = [_layer("quiet"), _layer("dear", 5.0), _layer("loud"), _layer("only between")]
    assert [x.name for x in ranked(layers, noise)] == ["loud", "only between", "dear", "quiet"]


def test_select_takes_paths_and_globs():
    layers = [_layer("a.b"), _layer("a.c"), _layer("ab")]
    assert [x.name for x in select(layers, "a")] == ["a.b", "a.c"]
    assert [x.name for x in select(layers, ["a*"])] == ["a.b", "a.c", "ab"]


def test_goals():
    assert Goal(0.01).holds(Goal(0.01).drop(0.98, 0.97))  # 0.010000000000000009
    assert not Goal(0.01).holds(Goal(0.01).drop(0.98, 0.9699))
    assert not Goal(0.01).holds(float("nan"))
    assert Goal(0.1, higher_is_better=False).drop(2.0, 2.5) == 0.5
    assert Goal(0.1, relative=True).drop(50.0, 45.0) == pytest.approx(0.1)
    assert Goal(0.0).holds(-0.5)


def test_the_section_says_what_was_returned_and_shortens_long_lists():
    names = tuple("abcdefgh")
    failed = Trial(1, "minmax", names, None, None, False, note="evaluate failed")
    good = Trial(2, "mse", ("a",), 0.99, 0.01, True, 0.002, 1.5)
    trials = (Trial(0, "float", (), 1.0, 0.0, True), failed, good)
    text = _text(TuningReport("a drop of at most 0.01", "interrupted", 2, trials, names, 3.0, 60.0, "tuning.log"))
    assert "tuned for a drop of at most 0.01; took 3.0 s of 60 s; ended: interrupted" in text
    assert "returned: trial 2, mse, with 1 layer in float" in text
    assert "a, b, c and 5 more" in text
    assert "2 *" in text
    assert "2.00 ms" in text
    assert "tuning.log" in text
    assert "returned: the model in float" in _text(TuningReport("a drop", "interrupted", 0, trials[:2]))


def _text(section: TuningReport) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(section)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_budget_limits_how_many_layers_are_measured(hard_task, monkeypatch):
    bench = Workbench(hard_task.model, None, hard_task.loader, "reference")
    tester = FakeTester(lambda given: False)
    search = _search(tester)
    monkeypatch.setattr("fxq.tuning.search._AT_ONCE", 2)
    search._batches = list(bench.data)
    base = bench.quantise(START)
    layers = int8_layers(base.float_graph, base.recipe, bench.inputs)
    tester.bench = bench  # type: ignore[attr-defined]
    assert set(search._noise(base, layers)) == {x.name for x in layers}
    assert search.notes == []
    tester.budget = Budget(1e-9, time.perf_counter())
    monkeypatch.setattr(Budget, "check", lambda *_: None)
    assert len(search._noise(base, layers)) == 2
    assert search.notes == [f"the budget held the measurement of 2 of {len(layers)} layers"]
