"""Any unary function of u8 codes, through a table of its 256 values."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import GraphError, nearest
from fxq.nn.epilogue import ACTIVATIONS, Epilogue, Param
from fxq.nn.kernels import Quantisation
from fxq.nn.kernels.kernel import check_codes
from fxq.nn.kernels.pointwise import SMALLEST
from fxq.nn.qdq import dequantize, quantize
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams

# Beyond the activations of an epilogue: name -> (function of the tensor and the parameters, number of parameters)
_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "identity": (lambda x: x, 0),
    "elu": (F.elu, 1),
    "mish": (F.mish, 0),
    "softplus": (F.softplus, 2),
    "neg": (torch.neg, 0),
    "abs": (torch.abs, 0),
    "sqrt": (torch.sqrt, 0),
    "exp": (torch.exp, 0),
    "add": (torch.add, 1),
    "mul": (torch.mul, 1),
}

FUNCTIONS = (*ACTIVATIONS, *_FUNCTIONS)


class QLookup(QOperation):
    """``function(x, *params)`` of a u8 tensor -> u8, exactly as in float followed by quantisation.

    Args:
        input, output: the parameters of the argument and of the result.
        function: one of ``FUNCTIONS``: the activations of ``Epilogue`` with their parameters, elu (alpha,), mish,
            softplus (beta, threshold), neg, abs, sqrt, exp, identity (requantise), add (constant,), mul (constant,).
        params: the function's parameters.

    A value that is not a number (sqrt of a negative one) becomes real zero. Buffer ``table``: 256 u8 codes. Large
    tensors use the onednn kernel where the backend has one for the function.

    Raises:
        GraphError: for an unknown function or a wrong number of parameters.
    """

    qparams_names = ("input", "output")
    table: Tensor

    def __init__(
        self, input: QParams, output: QParams, function: str, *params: Param, backend: str = "reference"
    ) -> None:
        super().__init__(backend)
        self.input, self.output, self.function, self.params = input, output, function, params
        codes = torch.arange(256, dtype=torch.uint8)
        real = _evaluate(function, params, dequantize(codes, input.scale, input.zero_point))
        self.register_buffer("table", quantize(real.nan_to_num(0.0), output.scale, output.zero_point))

    def forward(self, q: Tensor) -> Tensor:
        """u8 of any shape and layout -> u8 of the same shape."""
        if self.backend == "onednn" and self._in_one_pass and q.numel() >= SMALLEST:
            run = self._derived
            if run is None:
                run = self._derived = self._kernels(q).pointwise(self._quantisation())
            return run(q, None)  # type: ignore[no-any-return]
        return self._look_up(check_codes(q))

    def describe(self) -> str:
        """The name of the kernel for large tensors."""
        if self.backend == "onednn" and self._in_one_pass:
            return self._kernels(self.table).pointwise_name(self._quantisation())
        return "table"

    def _look_up(self, q: Tensor) -> Tensor:
        if q.dim() == 4 and not q.is_contiguous() and q.is_contiguous(memory_format=torch.channels_last):
            return self._look_up(q.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return torch.index_select(self.table, 0, q.reshape(-1).to(torch.int32)).view(q.shape)

    @property
    def _in_one_pass(self) -> bool:
        return self.function in ("identity", "relu", "relu6", "hardtanh", "hardswish")

    def _quantisation(self) -> Quantisation:
        epilogue = Epilogue() if self.function == "identity" else Epilogue(self.function, self.params)
        return Quantisation(self.input, self.output, None, epilogue)

    def extra_repr(self) -> str:
        arguments = ", ".join(str(p) for p in self.params)
        return f"{self.function}({arguments}), {super().extra_repr()}"


def _evaluate(function: str, params: tuple[Param, ...], real: Tensor) -> Tensor:
    if function in ACTIVATIONS:
        return Epilogue(function, params).activate(real)
    if function not in _FUNCTIONS:
        raise GraphError(f"there is no lookup function {function!r}", fix=nearest(function, FUNCTIONS))
    compute, wanted = _FUNCTIONS[function]
    if len(params) != wanted:
        raise GraphError(f"{function} takes {wanted} parameters, not {params}", where="QLookup")
    return compute(real, *params)
