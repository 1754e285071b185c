"""Options of a wrong type that Python would take for a right one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxq
from fxq.errors import CalibrationError, InputError


@pytest.mark.parametrize(
    "option",
    [
        {"momentum": True},
        {"percentile": True},
        {"reduce_range": "yes"},
        {"gates_in_float": 1},
        {"attention_in_float": 1},
    ],
)
def test_of_a_recipe(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))} is"):
        fxq.Recipe(**option)


@pytest.mark.parametrize("option", [{"momentum": True}, {"percentile": True}, {"quantise": "no"}])
def test_of_an_override(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(option))} is"):
        fxq.Override("head", **option)


def test_missing_calibration_data_is_an_error_of_the_data_and_of_the_input() -> None:
    for kind in (CalibrationError, InputError):
        with pytest.raises(kind, match="the recipe 'int8' needs calibration data"):
            fxq.compile(torch.nn.Linear(3, 2).eval(), torch.randn(1, 3), recipe="int8")
