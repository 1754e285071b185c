from __future__ import annotations

import pytest

from fxq.errors import InputError
from fxq.quant.presets import PRESETS
from fxq.quant.recipe import Recipe, resolve_recipe


def test_auto_follows_the_calibration_data() -> None:
    assert resolve_recipe("auto", calibrated=True) == Recipe("int8")
    assert resolve_recipe("auto", calibrated=False) == Recipe("auto")
    assert resolve_recipe(Recipe("auto", activation="mse"), calibrated=True) == Recipe("int8", activation="mse")
    assert resolve_recipe("float", calibrated=True) == Recipe("float")
    own = Recipe(weight="per_tensor")
    assert resolve_recipe(own, calibrated=False) is own


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'int'\n.*did you mean 'int8'"):
        resolve_recipe("int", calibrated=False)
    with pytest.raises(
        InputError,
        match=r"unknown recipe 'zzz'\n.*known: 'auto', 'bf16', .*'int8_accurate', 'int8_fast', 'int8_rounded', 'mixed'",
    ):
        resolve_recipe("zzz", calibrated=False)
    with pytest.raises(InputError, match=r"unknown recipe 8\n"):
        resolve_recipe(8, calibrated=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "int9"}, "unknown recipe 'int9'\n.*did you mean 'int8'"),
        ({"activation": "min_max"}, "unknown activation observer 'min_max'\n.*did you mean 'minmax'"),
        ({"weight": "per_chanel"}, "unknown weight granularity 'per_chanel'\n.*did you mean 'per_channel'"),
        ({"momentum": 2.0}, "momentum is 2.0\n.*above 0 and at most 1"),
    ],
)
def test_unknown_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**options)  # type: ignore[arg-type]


def test_an_unknown_correction_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown correction 'bias_accurat'\n.*did you mean 'bias_accurate'"):
        Recipe(corrections=("bias_accurat",))
    with pytest.raises(InputError, match=r"corrections is 'bias'\n.*give a tuple of names"):
        Recipe(corrections="bias")  # type: ignore[arg-type]


def test_corrections_are_a_tuple_without_repetitions() -> None:
    assert Recipe(corrections=["bias", "bias"]).corrections == ("bias",)  # type: ignore[arg-type]


def test_presets_have_names() -> None:
    assert resolve_recipe("int8_fast", calibrated=True) == Recipe(activation="minmax", corrections=("bias",))
    assert resolve_recipe("int8", calibrated=True) == Recipe()
    assert "bias_accurate" in resolve_recipe("int8_accurate", calibrated=True).corrections
    assert resolve_recipe("int8_accurate", calibrated=True).gates_in_float
    assert "adaround" in resolve_recipe("int8_rounded", calibrated=True).corrections
    for name in PRESETS:
        assert resolve_recipe(name, calibrated=False).quantises
    with pytest.raises(InputError, match=r"unknown recipe 'int8_acurate'\n.*did you mean 'int8_accurate'"):
        resolve_recipe("int8_acurate", calibrated=True)
    with pytest.raises(InputError, match=r"known: .*'int8_accurate', 'int8_fast'"):
        resolve_recipe("best", calibrated=True)
