"""Recipes that have names: few, and each of them justified by ``python -m benchmarks.fidelity``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_FLOAT: Final = {"gates_in_float": True, "attention_in_float": True}

#: What each preset gives ``fxq.Recipe``. All of them are static int8.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # calibrates in the time of the float model alone: one smallest and one largest value a tensor, and means
    "int8_fast": {"activation": "minmax", "corrections": ("bias",)},
    # the default: ranges with the least squared error, and means and slopes of each layer as in the float network
    "int8": {},
    # ranges of channels even out between layers, the input of the network has half the step, gates scale and attention
    # mixes in float
    "int8_accurate": {"corrections": ("bias_accurate", "equalise", "split_inputs"), **_FLOAT},
    # the same with weights rounded for the outputs of their layers: nearest to float, and the longest to compile
    "int8_rounded": {"corrections": ("adaround", "equalise", "split_inputs"), **_FLOAT},
}
