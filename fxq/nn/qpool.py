"""Operations that only move or compare u8 codes, and so keep the parameters of their input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import GraphError
from fxq.nn.geometry import Ints, per_dimension
from fxq.nn.kernels.kernel import check_codes
from fxq.nn.qoperation import QOperation
from fxq.quant.qparams import QParams

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class QMaxPool(nn.Module):
    """``max_pool`` of u8 (N, C, *spatial) or (C, *spatial) -> u8 with the same parameters.

    torch's own max_pool2d refuses u8 images of more than 255 pixels, and max_pool1d all; the operator used for one and
    two dimensions takes plain u8. Three dimensions go through float32, which holds every code exactly.
    """

    def __init__(
        self,
        ndim: int,
        kernel_size: Ints,
        stride: Ints | None = None,
        padding: Ints = 0,
        dilation: Ints = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.ndim, self.kernel_size = ndim, per_dimension(kernel_size, ndim)
        self.stride = self.kernel_size if stride is None else per_dimension(stride, ndim)
        self.padding, self.dilation, self.ceil_mode = (
            per_dimension(padding, ndim),
            per_dimension(dilation, ndim),
            ceil_mode,
        )
        self.eval()
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise GraphError(f"padding {self.padding} is more than half of the window {self.kernel_size}")
        one = (1,) * (2 - ndim)
        self._flat = (
            [*one, *self.kernel_size],
            [*one, *self.stride],
            [0] * len(one) + list(self.padding),
            [*one, *self.dilation],
            ceil_mode,
        )

    def forward(self, q: Tensor) -> Tensor:
        """Codes in, codes out."""
        if self.ndim < 3 and q.dim() == self.ndim + 2 and q.numel() and q.device.type == "cpu":
            image = check_codes(q) if self.ndim == 2 else check_codes(q).unsqueeze(2)
            pooled: Tensor = torch.ops.quantized.max_pool2d(image, *self._flat)
            return pooled if self.ndim == 2 else pooled.squeeze(2)
        real = check_codes(q).to(torch.float32)
        arguments = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return _MAX[self.ndim](real, *arguments).to(torch.uint8)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class QPad(QOperation):
    """``F.pad`` of u8 codes with real zero (or another real value), keeping the parameters.

    Args:
        pad: as in ``F.pad``: amounts before and after, last dimension first; negative ones crop. Those of a call,
            where it gives some, take their place.
        input: the parameters of the codes; ``value`` is rounded to one of them.
        mode: "constant", "reflect", "replicate" or "circular"; ``value`` is for "constant".
    """

    qparams_names = ("input",)

    def __init__(self, pad: Sequence[int], input: QParams, mode: str = "constant", value: float = 0.0) -> None:
        super().__init__("reference")
        self.amounts, self.input, self.mode, self.value = tuple(pad), input, mode, value

    @property
    def code(self) -> int:
        """The code of ``value``."""
        return self.input.code(self.value)

    def forward(self, q: Tensor, amounts: Sequence[int] | None = None) -> Tensor:
        """Codes in, codes out."""
        pad = self.amounts if amounts is None else tuple(amounts)
        if self.mode == "constant":
            return F.pad(check_codes(q), pad, "constant", self.code)
        return F.pad(check_codes(q), pad, self.mode)

    def describe(self) -> str:
        """The name of the kernel: PyTorch's own operator, for every target."""
        return "torch.pad"

    def extra_repr(self) -> str:
        return f"{self.amounts}, mode={self.mode}, code={self.code}"
