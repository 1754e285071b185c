"""Quantised arithmetic as the fields of operations: scales, limits, functions, tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fxq.engine.abi import Function
from fxq.engine.plan.operations import Slot
from fxq.errors import TargetError
from fxq.nn import Epilogue
from fxq.quant.qparams import QParams

_FUNCTIONS = {
    "silu": Function.SILU,
    "sigmoid": Function.SIGMOID,
    "tanh": Function.TANH,
    "hardswish": Function.HARDSWISH,
    "hardsigmoid": Function.HARDSIGMOID,
    "leaky_relu": Function.LEAKY_RELU,
    "elu": Function.ELU,
    "mish": Function.MISH,
}
#: Where the parameters of a function, and the inverse of the output's scale, stand among the floats.
_PARAMETERS = 3
INVERSE = 2


@dataclass(frozen=True)
class Activation:
    """An activation and what follows it, as fields of an operation.

    Attributes:
        ints, floats: by their places.
        real: whether the operation computes real values, which ``inverse`` then scales; else the result is scaled
            already, and limits of codes are all that is left.
    """

    ints: dict[int, int]
    floats: dict[int, float]
    real: bool


def activation(epilogue: Epilogue, output: QParams | None) -> Activation:
    """Return the activation of ``epilogue`` with the rounding to ``output``; None for a float32 result.

    Raises:
        TargetError: the engine has no such function.
    """
    limits = epilogue.bounds
    floats: dict[int, float] = {}
    function, lowest, highest = Function.IDENTITY, 0, 255
    if limits is not None:
        if output is not None:
            lowest, highest = output.code(limits[0]), output.code(limits[1])
        else:
            function = Function.CLIP
            floats |= {_PARAMETERS: _float32(limits[0]), _PARAMETERS + 1: _float32(limits[1])}
    elif epilogue.activation is not None:
        function, parameters = function_of(epilogue.activation, epilogue.params)
        floats |= {_PARAMETERS + i: value for i, value in enumerate(parameters)}
    if output is not None:
        floats[INVERSE] = inverse(output)
    ints = {Slot.FUNCTION: int(function), Slot.LOWEST: lowest, Slot.HIGHEST: highest}
    ints[Slot.ZERO_POINT] = 0 if output is None else output.zero_point
    return Activation({int(k): v for k, v in ints.items()}, floats, function is not Function.IDENTITY)


def function_of(name: str, params: tuple[Any, ...]) -> tuple[Function, tuple[float, ...]]:
    """Return the engine's function of that name, and its parameters.

    Raises:
        TargetError: there is none.
    """
    if name == "gelu":
        return (Function.GELU_TANH if params == ("tanh",) else Function.GELU), ()
    if name not in _FUNCTIONS:
        raise TargetError(f"the engine has no function {name!r}")
    return _FUNCTIONS[name], tuple(float(p) for p in params)


def inverse(output: QParams) -> float:
    """Return the float32 reciprocal of a scale, with which every kernel multiplies."""
    return float(np.float32(1.0) / np.float32(output.scale))


def _float32(value: float) -> float:
    largest = float(np.finfo(np.float32).max)
    return min(max(value, -largest), largest)
