from __future__ import annotations

import copy
import json
import math
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

import fxq
from fxq.errors import CalibrationError, InputError, TargetError
from fxq.passes import correct_bias_accurately
from fxq.progress import step
from fxq.tuning.search import Search
from fxq.tuning.trials import TuningReport


@pytest.fixture(autouse=True, scope="module")
def _few_recipes():
    """Few calibrators, and the quicker corrections: all are tried in the tests of the search."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fxq.tuning.candidates._CALIBRATORS", ("mse", "minmax"))
        patch.setattr("fxq.tuning.candidates._CORRECTIONS", ("equalise",))
        patch.setattr("fxq.tuning.candidates._DEARER", ("bias_accurate",))
        yield


def _section(gm) -> TuningReport:
    (section,) = fxq.report(gm).sections
    assert isinstance(section, TuningReport)
    return section


def _decisions(section: TuningReport) -> list[tuple]:
    return [(t.recipe, t.float_layers, t.metric, t.holds, t.note) for t in section.trials]


class Counted:
    """An evaluate function that counts its calls and does something else at one of them."""

    def __init__(self, evaluate, at: int = -1, then=None) -> None:
        self.evaluate, self.at, self.then, self.calls = evaluate, at, then, 0

    def __call__(self, gm: nn.Module) -> float:
        self.calls += 1
        return self.then() if self.calls == self.at else self.evaluate(gm)


def _raise(error: BaseException):
    def then() -> float:
        raise error

    return then


@pytest.fixture(scope="module")
def tuned(hard_task, tmp_path_factory):
    """One whole search on the hard task."""
    log = tmp_path_factory.mktemp("tuned") / "log"
    gm = fxq.autotune(
        hard_task.model, calibration=hard_task.loader, evaluate=hard_task.evaluate, max_drop=0.03, budget_s=600,
        log=log,
    )  # fmt: skip
    return hard_task, gm, log


def test_a_hard_layer_is_left_in_float_and_the_metric_holds(tuned):
    task, gm, _ = tuned
    section = _section(gm)
    assert task.evaluate(gm) == section.best.metric >= 0.97
    assert "hard" in section.best.float_layers
    assert len(section.best.float_layers) <= 2
    assert section.layers[0] == "hard"
    assert section.seconds < 600
    assert not section.trials[1].holds
    kinds = {(layer.module_path, layer.kind) for layer in fxq.report(gm).layers}
    assert ("front", "QConv2d") in kinds
    assert ("hard", "QConv2d") not in kinds


def test_the_report_says_what_was_tried(tuned):
    _, gm, log = tuned
    text = str(fxq.report(gm))
    assert "what was tried" in text
    assert "searched to the end" in text
    assert "speed-up" in text
    data = json.loads(json.dumps(fxq.report(gm).to_dict()))["sections"]["tuning"]
    assert data["chosen"] == _section(gm).chosen
    assert all(t["latency_s"] is not None for t in data["trials"] if not t["note"])
    assert fxq.report(gm).passes[-1].total is not None
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[0]["format"] == "fxq autotune log"
    assert sum("trial" in line for line in lines) == len(data["trials"]) - 1


def test_the_report_is_saved_with_the_module(tuned, tmp_path):
    task, gm, _ = tuned
    fxq.save(gm, tmp_path / "module.fxq")
    loaded = fxq.load(tmp_path / "module.fxq")
    assert torch.equal(loaded(task.images), gm(task.images))
    assert "what was tried" in str(fxq.report(loaded))


def test_the_same_search_gives_the_same_module(tuned):
    task, gm, _ = tuned
    again = fxq.autotune(task.model, calibration=task.loader, evaluate=task.evaluate, max_drop=0.03, budget_s=600)
    assert _decisions(_section(again)) == _decisions(_section(gm))
    assert torch.equal(again(task.images), gm(task.images))


def test_a_finished_log_needs_no_more_than_the_float_metric(tuned):
    task, gm, log = tuned
    evaluate = Counted(task.evaluate)
    again = fxq.autotune(task.model, calibration=task.loader, evaluate=evaluate, max_drop=0.03, budget_s=600, log=log)
    assert evaluate.calls == 1
    assert _decisions(_section(again)) == _decisions(_section(gm))
    assert _section(again).best.latency_s == _section(gm).best.latency_s
    assert torch.equal(again(task.images), gm(task.images))


@pytest.mark.parametrize("at", [3, 5])
def test_an_interrupted_search_returns_and_resumes(tuned, tmp_path, at):
    task, whole, _ = tuned
    log = tmp_path / "other"
    broken = Counted(task.evaluate, at, _raise(KeyboardInterrupt()))
    gm = fxq.autotune(task.model, calibration=task.loader, evaluate=broken, max_drop=0.03, budget_s=600, log=log)
    assert _section(gm).ended == "interrupted"
    assert _section(gm).chosen == 0
    assert task.evaluate(gm) == 1.0
    with log.open("a") as file:
        file.write('{"trial": "cut o')
    resumed = Counted(task.evaluate)
    gm = fxq.autotune(task.model, calibration=task.loader, evaluate=resumed, max_drop=0.03, budget_s=600, log=log)
    assert _decisions(_section(gm)) == _decisions(_section(whole))
    assert torch.equal(gm(task.images), whole(task.images))
    assert sum(t.from_log for t in _section(gm).trials) >= at - 2
    evaluated = sum(not t.note for t in _section(whole).trials)
    assert resumed.calls == evaluated - (at - 1) + 1  # what was not asked before, and the float model


def test_a_log_of_something_else_is_refused(tuned):
    task, _, log = tuned
    before = log.read_bytes()
    other = type(task.model)().eval()
    with pytest.raises(InputError, match=r"of another search\n.*its model is"):
        fxq.autotune(other, calibration=task.loader, evaluate=task.evaluate, log=log)
    with pytest.raises(InputError, match=r"of another search\n.*its data is"):
        fxq.autotune(task.model, calibration=task.loader[:1], evaluate=task.evaluate, log=log)
    with pytest.raises(InputError, match=r"of another search\n.*its metric of the float model is 1.0, here it is 0.5"):
        fxq.autotune(task.model, calibration=task.loader, evaluate=lambda gm: 0.5, log=log)
    with pytest.raises(InputError, match=r"of another search\n.*its seed is 0, here it is 1"):
        fxq.autotune(task.model, calibration=task.loader, evaluate=task.evaluate, log=log, seed=1)
    assert log.read_bytes() == before


def test_an_interrupt_after_success_returns_the_int8_module(hard_task):
    # the first module holds; the search would end, so the interrupt comes while a tighter goal is searched for
    calls = Counted(hard_task.evaluate, 3, _raise(KeyboardInterrupt()))
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=calls, max_drop=0.9)
    assert calls.calls == 2
    assert _section(gm).chosen == 1
    assert _section(gm).ended == "a recipe holds the metric with all layers in int8"
    assert _section(gm).best.float_layers == ()


def test_an_interrupt_before_anything_is_known_goes_through(hard_task):
    evaluate = Counted(hard_task.evaluate, 1, _raise(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate)


def test_measuring_layers_ends_with_the_budget(hard_task, monkeypatch):
    def endless(self, base, layers):
        while True:
            time.sleep(0.01)
            step()

    monkeypatch.setattr(Search, "_noise", endless)
    metrics = iter([1.0])
    evaluate = lambda gm: next(metrics, 0.0)  # noqa: E731 - of the float model, then of all others
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, budget_s=8)
    assert _section(gm).ended == "the budget of 8 s is spent"
    assert 8 < _section(gm).seconds < 10


def test_a_spent_budget_returns_the_float_model(hard_task):
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=hard_task.evaluate, budget_s=1e-3)
    assert _section(gm).ended == "the budget of 0.001 s is spent"
    assert _section(gm).chosen == 0
    assert "the model in float, as no int8 module" in str(fxq.report(gm))
    assert torch.equal(gm(hard_task.images), fxq.compile(hard_task.model, recipe="float")(hard_task.images))


def test_an_evaluation_that_takes_too_long_is_cut_off_where_it_calls_the_module(hard_task):
    calls = []

    def evaluate(gm: nn.Module) -> float:
        for _ in range(100 if calls else 1):  # a quick float model, and int8 modules that take ten seconds
            calls.append(gm(hard_task.images[:1]))
            time.sleep(0.1)
        return 1.0

    start = time.perf_counter()
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, budget_s=3)
    assert time.perf_counter() - start < 5
    assert _section(gm).trials[-1].note == "cut off by the budget"
    assert _section(gm).ended == "the budget of 3 s is spent"
    assert _section(gm).chosen == 0


def test_a_correction_that_takes_too_long_is_cut_off_between_layers(hard_task, monkeypatch):
    def slow(*args):
        time.sleep(1.0)
        return quantised(*args)

    quantised = correct_bias_accurately.quantised
    monkeypatch.setattr(correct_bias_accurately, "quantised", slow)
    start, recipe = time.perf_counter(), fxq.Recipe(corrections=("bias_accurate",))
    gm = fxq.autotune(
        hard_task.model, calibration=hard_task.loader, evaluate=hard_task.evaluate, budget_s=2, recipe=recipe
    )
    assert time.perf_counter() - start < 4  # five layers
    assert [t.note for t in _section(gm).trials] == ["", "cut off by the budget"]


def test_what_evaluate_makes_of_the_module_is_as_usual(hard_task, tmp_path):
    kept = []

    def evaluate(gm: nn.Module) -> float:
        fxq.save(gm, tmp_path / "candidate.fxq")  # refuses hooks
        kept.append(copy.deepcopy(gm))
        return hard_task.evaluate(gm)

    fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, max_drop=1.0)
    assert torch.equal(kept[-1](hard_task.images), fxq.load(tmp_path / "candidate.fxq")(hard_task.images))


def test_evaluate_that_fails_once_costs_one_trial(hard_task):
    evaluate = Counted(hard_task.evaluate, 2, _raise(RuntimeError("the disk is gone\nreally")))
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, max_drop=0.9)
    section = _section(gm)
    assert section.trials[1].note == "evaluate failed: RuntimeError: the disk is gone"
    assert section.trials[1].metric is None
    assert section.chosen == 2


@pytest.mark.parametrize(("result", "words"), [(None, "returned a NoneType"), ("0.9", "returned a str")])
def test_evaluate_that_keeps_failing_ends_the_search(hard_task, result, words):
    calls = 0

    def evaluate(gm: nn.Module) -> object:
        nonlocal calls
        calls += 1
        return 1.0 if calls == 1 else result

    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate)
    assert calls == 3
    assert words in _section(gm).ended
    assert "2 times in a row" in _section(gm).ended
    assert _section(gm).chosen == 0


def test_modules_that_fail_do_not_end_the_search(hard_task):
    def evaluate(gm: nn.Module) -> float:
        if any("QConv2d" in type(m).__name__ for m in gm.modules()):
            raise TargetError("the engine refuses the program")
        return 1.0

    common = {"calibration": hard_task.loader, "evaluate": evaluate, "max_drop": 0.1, "target": "reference"}
    gm = fxq.autotune(hard_task.model, **common, budget_s=600)
    section = _section(gm)
    assert section.trials[1].note == "the module fails: TargetError: the engine refuses the program"
    assert section.ended == "searched to the end"
    assert {"stem", "front", "hard", "back"} <= set(section.best.float_layers)


def test_nan_counts_as_too_low(hard_task):
    evaluate = Counted(hard_task.evaluate, 2, lambda: math.nan)
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, max_drop=0.9)
    assert _section(gm).trials[1].note == "evaluate returned nan"
    assert not _section(gm).trials[1].holds
    assert _section(gm).chosen == 2


def test_losses_and_relative_drops(hard_task):
    def loss(gm: nn.Module) -> torch.Tensor:
        return torch.tensor(10.0 * (2.0 - hard_task.evaluate(gm)))  # 10 in float, 18.2 in int8

    common = {"calibration": hard_task.loader, "evaluate": loss, "higher_is_better": False}
    easy = fxq.autotune(hard_task.model, **common, relative=True, max_drop=0.9)
    assert _section(easy).chosen == 1
    assert _section(easy).best.drop == pytest.approx(0.8, abs=0.1)
    tight = fxq.autotune(hard_task.model, **common, max_drop=0.9, recipe=fxq.Recipe(corrections=("bias",)))
    assert not _section(tight).trials[1].holds
    assert _section(tight).trials[1].drop == pytest.approx(8.0, abs=1.0)
    assert _section(tight).best.metric <= 10.9


def test_random_numbers_and_the_model_stay_as_they_are(hard_task):
    seen = []

    def evaluate(gm: nn.Module) -> float:
        seen.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        gm.train()
        for tensor in (*gm.parameters(), *gm.buffers()):
            tensor.detach().zero_()
        return 1.0

    state = {k: v.clone() for k, v in hard_task.model.state_dict().items()}
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    gm = fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=evaluate, seed=5)
    assert len(set(seen)) == 1
    assert len(seen) == 2
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert all(torch.equal(v, state[k]) for k, v in hard_task.model.state_dict().items())
    assert bool(gm(hard_task.images).any())
    assert not gm.training


def test_refuses_what_it_cannot_use(hard_task, tmp_path):
    model, good = hard_task.model, {"calibration": hard_task.loader, "evaluate": hard_task.evaluate}
    for change, words in (
        ({"max_drop": -0.1}, "max_drop is -0.1"),
        ({"max_drop": math.nan}, "max_drop is nan"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"budget_s": "10"}, "budget_s is '10'"),
        ({"seed": -1}, "seed is -1"),
        ({"evaluate": None}, "evaluate is a NoneType"),
        ({"recipe": "dynamic"}, "the recipe 'dynamic' does not quantise activations"),
        ({"calibration": None}, "no calibration data"),
        ({"calibration": lambda m: m(hard_task.loader[0])}, "no example inputs"),
        ({"evaluate": lambda gm: math.nan}, "evaluate returned nan for the float model"),
        ({"evaluate": lambda gm: gm(hard_task.images)}, r"evaluate returned a Tensor of shape \[128, 5\]"),
        ({"log": tmp_path / "no" / "folder"}, "cannot be written"),
        ({"log": tmp_path}, "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            fxq.autotune(model, **{**good, **change})
    with pytest.raises(CalibrationError, match="empty"):
        fxq.autotune(model, **{**good, "calibration": []})


def test_files_that_are_no_log_stay_as_they_are(hard_task, tmp_path):
    path = tmp_path / "notes.txt"
    for content, words in (('{"a": 1}\n', "is no log"), ("dear diary\nmore\n", "is damaged")):
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=hard_task.evaluate, log=path)
        assert path.read_text() == content


def test_progress_names_each_trial(hard_task, capfd):
    recipe = fxq.Recipe("int8", activation="mse", corrections=())
    fxq.autotune(hard_task.model, calibration=hard_task.loader, evaluate=lambda gm: 1.0, recipe=recipe, progress=True)
    assert "autotune 1: mse: 1 (holds)" in capfd.readouterr().err


def test_modules_that_differ_in_scales_alone_are_told_apart(tuned):
    _, gm, _ = tuned
    notes = {t.recipe: t.note for t in _section(gm).trials if not t.float_layers}
    assert notes["mse, bias"] == notes["minmax, bias"] == ""
