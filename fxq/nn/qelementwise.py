"""Addition, multiplication and concatenation of u8 tensors with different scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxq.errors import GraphError
from fxq.nn.epilogue import Epilogue
from fxq.nn.kernels import Quantisation, Run, channel_scale, kernel_set
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams

_NOTHING = Epilogue()


class QAdd(QOperation):
    """``activation(a + b)``: two u8 tensors that broadcast against each other -> u8.

    Args:
        a, b, output: the parameters of the operands and of the result.
        activation: an epilogue without addition, or None.
    """

    qparams_names = ("a", "b", "output")

    def __init__(
        self, a: QParams, b: QParams, output: QParams, activation: Epilogue | None = None, backend: str = "reference"
    ) -> None:
        super().__init__(backend)
        self.a, self.b, self.output = a, b, output
        self.epilogue = replace(_without_addition(activation), add=True)

    def forward(self, qa: Tensor, qb: Tensor) -> Tensor:
        """Codes in, codes out; neither argument is modified."""
        run = self._derived
        if run is None:
            run = self._derived = self._kernels(qa).pointwise(self._quantisation())
        return run(qa, qb)  # type: ignore[no-any-return]

    def describe(self) -> str:
        """The name of the kernel that adds large operands of equal shape."""
        return kernel_set(self.backend).pointwise_name(self._quantisation())

    def _quantisation(self) -> Quantisation:
        return Quantisation(self.a, self.output, self.b, self.epilogue)


class QMul(QOperation):
    """``activation(a * b)``: two u8 tensors that broadcast against each other -> u8.

    ``((qa - za) * sa) * ((qb - zb) * sb)`` in float32. One operand of shape (N, C, 1, 1), as in squeeze-and-excite,
    has a kernel of its own.
    """

    qparams_names = ("a", "b", "output")

    def __init__(
        self, a: QParams, b: QParams, output: QParams, activation: Epilogue | None = None, backend: str = "reference"
    ) -> None:
        super().__init__(backend)
        self.a, self.b, self.output = a, b, output
        self.epilogue = _without_addition(activation)

    def forward(self, qa: Tensor, qb: Tensor) -> Tensor:
        """Codes in, codes out; neither argument is modified."""
        if self.backend == "onednn":
            if channel_scale.fits(qa, qb):
                return self._channel_scale(qa, self.a, qb, self.b)
            if channel_scale.fits(qb, qa):
                return self._channel_scale(qb, self.b, qa, self.a)
        return channel_scale.multiply(self._quantisation(self.a), self.b, qa, qb)

    def describe(self) -> str:
        """The name of the kernel that scales the channels of a large operand."""
        return "onednn.qconv2d_pointwise" if self.backend == "onednn" else "reference"

    def _channel_scale(self, q: Tensor, codes: QParams, factor: Tensor, factor_codes: QParams) -> Tensor:
        kernels = self._derived
        if kernels is None:
            kernels = self._derived = {}
        key = q.shape[1], codes
        if key not in kernels:
            kernels[key] = channel_scale.build(q.shape[1], self._quantisation(codes), factor_codes)
        kernel = kernels[key]
        if kernel is None:
            return channel_scale.multiply(self._quantisation(codes), factor_codes, q, factor)
        return kernel(q, factor)  # type: ignore[no-any-return]

    def _quantisation(self, codes: QParams) -> Quantisation:
        return Quantisation(codes, self.output, None, self.epilogue)


class QCat(QOperation):
    """Concatenate u8 tensors along ``dim`` -> u8; those whose parameters differ from the output's are requantised.

    Args:
        inputs: the parameters of each operand, in order.
        output: the parameters of the result.
    """

    qparams_names = ("inputs", "output")

    def __init__(self, inputs: Sequence[QParams], output: QParams, dim: int = 0, backend: str = "reference") -> None:
        super().__init__(backend)
        self.inputs, self.output, self.dim = tuple(inputs), output, dim

    def forward(self, *codes: Tensor | Sequence[Tensor]) -> Tensor:
        """``forward(q1, q2, ...)`` or ``forward([q1, q2, ...])``; none is modified.

        Raises:
            GraphError: if the number of operands is not the number of parameters.
        """
        operands: Any = codes[0] if len(codes) == 1 and not isinstance(codes[0], Tensor) else codes
        if len(operands) != len(self.inputs):
            raise GraphError(f"QCat has parameters for {len(self.inputs)} tensors but was given {len(operands)}")
        runs: list[Run | None] | None = self._derived
        if runs is None:
            runs = self._derived = [self._requantiser(p, operands[0]) for p in self.inputs]
        return torch.cat([q if run is None else run(q, None) for run, q in zip(runs, operands, strict=True)], self.dim)

    def _requantiser(self, source: QParams, q: Tensor) -> Run | None:
        if source == self.output:
            return None
        run: Run = self._kernels(q).pointwise(Quantisation(source, self.output))
        return run

    def describe(self) -> str:
        """The name of the kernel that requantises, if any does."""
        different = [p for p in self.inputs if p != self.output]
        if not different:
            return "torch.cat"
        return kernel_set(self.backend).pointwise_name(Quantisation(different[0], self.output)) + ", torch.cat"


def _without_addition(activation: Epilogue | None) -> Epilogue:
    epilogue = _NOTHING if activation is None else activation
    if epilogue.add:
        raise GraphError("an element-wise operation takes an activation, not an epilogue that adds")
    return epilogue
