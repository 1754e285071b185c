from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import fxq
from fxq.analysis.error_sums import ErrorSums
from fxq.errors import CalibrationError, InputError


def _output_db(reference: nn.Module, gm: nn.Module, batches: list[torch.Tensor]) -> float:
    sums = ErrorSums()
    with torch.no_grad():
        for batch in batches:
            sums.add(reference(batch), gm(batch))
    return sums.distance().sqnr_db


def _compiled(task, *overrides: fxq.Override) -> nn.Module:
    recipe = fxq.Recipe("int8", overrides=overrides, corrections=("bias",))
    return fxq.compile(task.model, calibration=task.loader, recipe=recipe, target="reference")


def test_the_hard_layer_comes_first(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader)
    assert found.rows[0].layer == "hard"
    assert found["hard"].alone_db < min(r.alone_db for r in found.rows[1:]) - 10
    assert found["hard"].gain_db == max(r.gain_db for r in found.rows) > 3


def test_rows_are_what_compiling_with_overrides_gives(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader)
    float_module = fxq.compile(hard_task.model, hard_task.loader[0], recipe="float")
    for name in ("front", "hard", "back"):
        alone = _compiled(hard_task, fxq.Override("*", quantise=False), fxq.Override(name))
        without = _compiled(hard_task, fxq.Override(name, quantise=False))
        # the reference modules multiply codes, the graph that defines them dequantised values: the last bit may differ
        assert found[name].alone_db == pytest.approx(_output_db(float_module, alone, hard_task.loader), abs=0.5)
        assert found[name].without_db == pytest.approx(_output_db(float_module, without, hard_task.loader), abs=0.5)
    whole = _compiled(hard_task)
    assert found.int8_db == pytest.approx(_output_db(float_module, whole, hard_task.loader), abs=0.5)


def test_every_quantised_layer_has_a_row_and_an_override_takes_its_name(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader)
    assert {"stem", "front", "hard", "back", "head"} <= {r.layer for r in found.rows}
    recipe = fxq.Recipe("int8", overrides=found.overrides(len(found.rows)), corrections=("bias",))
    gm = fxq.compile(hard_task.model, hard_task.loader[0], calibration=hard_task.loader, recipe=recipe)
    assert not any(layer.scale is not None for layer in fxq.report(gm).layers)


def test_metrics_of_the_user(hard_task):
    seen: list[nn.Module] = []

    def evaluate(gm: nn.Module) -> float:
        seen.append(gm)
        return hard_task.evaluate(gm)

    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader, evaluate=evaluate)
    assert len(seen) == 2 * len(found.rows) + 2
    assert found.float_metric == 1.0
    assert found["hard"].without_metric > found.int8_metric
    assert "metric alone in float" in str(found)


def test_only_what_differs_is_run(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader)
    assert 0.1 < found.times.share_run < 0.9
    assert all(row.seconds > 0 for row in found.rows)


def test_layers_limits_the_rows(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader, layers=["h*"])
    assert {r.layer for r in found.rows} == {"hard", "head"}


def test_a_layer_that_nobody_knows_is_an_error(hard_task):
    with pytest.raises(InputError, match=r"'hrad' matches no layer.*\n.*did you mean.*'hard'"):
        fxq.sensitivity(hard_task.model, calibration=hard_task.loader, layers=["hrad"])


def test_layers_that_the_recipe_keeps_in_float_have_no_row(hard_task):
    recipe = fxq.Recipe(overrides=(fxq.Override("hard", quantise=False),), corrections=("bias",))
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader, recipe=recipe)
    assert "hard" not in {r.layer for r in found.rows}


def test_prints_and_converts(hard_task):
    found = fxq.sensitivity(hard_task.model, calibration=hard_task.loader)
    text = str(found)
    assert "hard" in text.splitlines()[4]
    assert "calibrated once" in text
    data = json.loads(json.dumps(found.to_dict()))
    assert data["rows"][0]["layer"] == "hard"
    assert all(r["alone_db"] is None or math.isfinite(r["alone_db"]) for r in data["rows"])
    with pytest.raises(KeyError):
        found["nowhere"]


def test_progress_is_shown_on_request(hard_task, capfd):
    fxq.sensitivity(hard_task.model, calibration=hard_task.loader, layers=["hard"], progress=False)
    assert capfd.readouterr().err == ""
    fxq.sensitivity(hard_task.model, calibration=hard_task.loader, layers=["hard"], progress=True)
    assert capfd.readouterr().err


def test_data_of_its_own_and_generators(hard_task):
    once = (batch for batch in hard_task.loader)
    found = fxq.sensitivity(hard_task.model, calibration=once, data=hard_task.images, layers=["hard"])
    assert found.batches == 1


def test_the_model_and_the_data_stay_as_they_are(hard_task):
    state = {k: v.clone() for k, v in hard_task.model.state_dict().items()}
    batches = [b.clone() for b in hard_task.loader]
    fxq.sensitivity(hard_task.model, calibration=hard_task.loader, evaluate=hard_task.evaluate)
    assert all(torch.equal(v, state[k]) for k, v in hard_task.model.state_dict().items())
    assert all(map(torch.equal, batches, hard_task.loader))


def test_refuses_what_it_cannot_use(hard_task):
    model, loader = hard_task.model, hard_task.loader
    with pytest.raises(InputError, match="no calibration data"):
        fxq.sensitivity(model, loader[0], calibration=None)
    with pytest.raises(InputError, match="the recipe 'float' does not quantise activations"):
        fxq.sensitivity(model, calibration=loader, recipe="float")
    with pytest.raises(InputError, match="evaluate is a float"):
        fxq.sensitivity(model, calibration=loader, evaluate=0.5)
    with pytest.raises(InputError, match="evaluate returned nan for the float model"):
        fxq.sensitivity(model, calibration=loader, evaluate=lambda gm: math.nan)
    with pytest.raises(InputError, match="evaluate returned a NoneType"):
        fxq.sensitivity(model, calibration=loader, evaluate=lambda gm: None)
    with pytest.raises(InputError, match="no example inputs"):
        fxq.sensitivity(model, calibration=lambda m: m(loader[0]))
    with pytest.raises(InputError, match=r"no batches to compare outputs on.*\n.*\n.*pass data=batches"):
        fxq.sensitivity(model, loader[0], calibration=lambda m: m(loader[0]))
    with pytest.raises(CalibrationError, match="empty"):
        fxq.sensitivity(model, calibration=[])


def test_a_calibration_callable_serves(hard_task):
    found = fxq.sensitivity(
        hard_task.model, hard_task.loader[0], calibration=lambda m: [m(b) for b in hard_task.loader],
        data=hard_task.loader, layers=["hard"],
    )  # fmt: skip
    assert found["hard"].alone_db < 40
