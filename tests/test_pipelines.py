"""Which corrections stand where in the pipeline of a recipe."""

from __future__ import annotations

import pytest

from fxq.pipelines import int8_pipeline
from fxq.quant.recipe import Recipe


@pytest.mark.parametrize(
    ("corrections", "behind_calibrate"),
    [
        ((), []),
        (("bias",), ["correct_bias"]),
        (("bias_accurate",), ["correct_bias_accurately"]),
        (("bias", "bias_accurate"), ["correct_bias_accurately"]),
        (("bias", "adaround", "bias_accurate"), ["round_adaptively"]),
        (("batch_norm", "bias"), ["correct_bias", "reestimate_batch_norm"]),
    ],
)
def test_corrections_of_layers_follow_calibration(corrections: tuple[str, ...], behind_calibrate: list[str]) -> None:
    names = int8_pipeline(Recipe(corrections=corrections)).names()
    start, end = names.index("calibrate"), names.index("convert_qdq")
    assert names[start + 1 : end] == behind_calibrate


def test_corrections_of_ranges_come_before_calibration() -> None:
    names = int8_pipeline(Recipe(corrections=("smooth", "equalise"))).names()
    end = names.index("insert_observers")
    assert names[end - 2 : end] == ["equalise_layers", "smooth_quant"]
