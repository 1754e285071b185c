"""What a backend gives to an int8 layer: a function of the codes, and its name for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from fxq.errors import GraphError, InputError
from fxq.nn.epilogue import Epilogue
from fxq.nn.geometry import ConvGeometry
from fxq.nn.qdq import dequantize, round_to_u8_
from fxq.quant.qparams import QParams

_NO_EPILOGUE = Epilogue()
#: What real results may be: bfloat16 is the float32 result, rounded half to even.
REAL_DTYPES: Final = (torch.float32, torch.bfloat16)


class Run(Protocol):
    """(codes, residual codes) -> codes, float32 or bfloat16.

    No argument is modified, except that ``overwrite`` allows to compute into the memory of the residual.
    """

    def __call__(self, q: Tensor, residual: Tensor | None, overwrite: bool = False, /) -> Tensor: ...


class Weights(NamedTuple):
    """int8 weight in the float layer's layout, float32 scale of shape (output channels,), float32 bias or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Quantisation:
    """The codes that go into and come out of a layer, and what happens before requantisation.

    ``output`` None means a real result, in ``dtype``: float32, or bfloat16 (rounded from float32 after everything
    else). ``residual`` is given exactly when the epilogue adds one.

    Raises:
        GraphError: the residual does not go with the epilogue, or ``dtype`` with the output.
    """

    input: QParams
    output: QParams | None
    residual: QParams | None = None
    epilogue: Epilogue = _NO_EPILOGUE
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.epilogue.add != (self.residual is not None):
            raise GraphError(
                f"the epilogue {str(self.epilogue)!r} and the residual parameters {self.residual} do not go together",
                fix="give the residual's QParams exactly when the epilogue adds",
            )
        if self.dtype not in (REAL_DTYPES if self.output is None else REAL_DTYPES[:1]):
            name = str(self.dtype).removeprefix("torch.")
            raise GraphError(
                f"an int8 layer that gives {'real values' if self.output is None else 'codes'} has the dtype {name}",
                fix="give float32, or bfloat16 for a layer without an output's QParams",
            )

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype of what comes out: uint8, or that of a real result."""
        return self.dtype if self.output is None else torch.uint8

    def finish(self, real: Tensor, residual: Tensor | None) -> Tensor:
        """Epilogue and requantisation of float32 ``real`` values, the same for every kernel that needs it in float."""
        self.epilogue.check(residual)
        if residual is not None and self.residual is not None:
            real = real + dequantize(check_codes(residual, "residual"), self.residual.scale, self.residual.zero_point)
        real = self.epilogue.activate(real)
        if self.output is None:
            return real.to(self.dtype)
        return round_to_u8_(real * (1.0 / self.output.scale), self.output.zero_point)


@dataclass(frozen=True)
class KernelSet:
    """A backend. ``conv`` and ``linear`` pack the weights; the ``*_name`` functions only tell what they would use.

    ``pointwise`` is a layer with weight 1 and no bias: requantisation, addition, activation.

    The last argument of ``conv`` is a representative input shape to pack for; every other shape works as well.
    """

    conv: Callable[[ConvGeometry, Quantisation, Weights, torch.Size], Run]
    linear: Callable[[Quantisation, Weights], Run]
    pointwise: Callable[[Quantisation], Run]
    conv_name: Callable[[ConvGeometry, Quantisation], str]
    linear_name: Callable[[Quantisation], str]
    pointwise_name: Callable[[Quantisation], str]


def check_codes(q: Tensor, what: str = "input") -> Tensor:
    """Return ``q``, or raise InputError unless it holds u8 codes."""
    if q.dtype is not torch.uint8:
        raise InputError(
            f"an int8 layer takes uint8 codes, but its {what} is {str(q.dtype).removeprefix('torch.')}",
            fix="quantise it first (fxq.nn.quantize)",
        )
    return q
