"""What the int8 layers share: raw int8 weights as buffers, a kernel that is packed at the first call."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from fxq.nn.kernels import BACKENDS, KernelSet, Quantisation, Run, Weights, exact_kernel_set, kernel_set
from fxq.nn.ownership import take
from fxq.nn.packed import Packed
from fxq.quant.qparams import QParams


class QLayer(Packed):
    """Base of ``QConv*`` and ``QLinear``.

    Buffers: ``weight`` int8 in the float layer's layout, ``weight_scale`` float32, ``bias`` float32 or None. The scales
    and zero points of the activations travel as the state dict's extra state. Packing twice in two threads is harmless,
    as both pack the same.

    Attributes:
        quantisation: scales and zero points in and out, and the epilogue.
        backend: "reference" or "onednn". Buffers on another device than the CPU always use the reference kernel, and
            so do weights of 8 bits on a CPU whose instructions saturate them.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weights: Weights, quantisation: Quantisation, backend: str) -> None:
        super().__init__()
        kernel_set(backend)  # fails here rather than at the first call
        self.register_buffer("weight", weights.weight)
        self.register_buffer("weight_scale", weights.scale)
        self.register_buffer("bias", weights.bias)
        self.quantisation = quantisation
        self.backend = backend
        self.eval()

    def forward(self, q: Tensor, residual: Tensor | list[Tensor] | None = None) -> Tensor:
        """u8 codes -> u8 codes, or real values where the output has no QParams. Neither argument is modified.

        A residual in a list is given up by the caller: it is taken out of the list, and its memory may become the
        result's where nobody else can see it.
        """
        run: Run | None = self._derived
        if run is None:
            run = self._derived = self._build(
                self._kernels(), Weights(self.weight, self.weight_scale, self.bias), q.shape
            )
        return run(q, *take(residual)) if isinstance(residual, list) else run(q, residual)

    def giving(self, dtype: torch.dtype) -> Self:
        """Return this layer, on the same buffers, with real results in ``dtype``, float32 or bfloat16.

        Raises:
            GraphError: it gives codes, or ``dtype`` is another one.
        """
        found = copy.copy(self)
        found._buffers = dict(self._buffers)
        found.quantisation = replace(self.quantisation, dtype=dtype)
        found._derived = None
        return found

    @property
    def adds_in_place(self) -> bool:
        """Whether the kernel can add into the memory of a residual that is given up."""
        return self.quantisation.epilogue.add and self.backend == "onednn"

    def describe(self) -> str:
        """The name of the kernel that computes this layer."""
        raise NotImplementedError

    def _build(self, kernels: KernelSet, weights: Weights, x_shape: torch.Size) -> Run:
        raise NotImplementedError

    def _kernels(self) -> KernelSet:
        return (
            exact_kernel_set(self.backend, self.weight) if self.weight.device.type == "cpu" else BACKENDS["reference"]
        )

    def get_extra_state(self) -> dict[str, tuple[float, int] | None]:
        """Scales and zero points, as plain numbers."""
        q = self.quantisation
        parts = {"input": q.input, "output": q.output, "residual": q.residual}
        return {name: None if p is None else (p.scale, p.zero_point) for name, p in parts.items()}

    def set_extra_state(self, state: dict[str, tuple[float, int] | None]) -> None:
        """Take over scales and zero points from ``get_extra_state``'s result."""
        parts: dict[str, Any] = {name: None if p is None else QParams(*p) for name, p in state.items()}
        self.quantisation = replace(self.quantisation, **parts)
        self._derived = None

    def _summary(self) -> str:
        q = self.quantisation
        codes = {"input": q.input, "residual": q.residual, "output": q.output}
        parts = [f"{name}=({p.scale:.6g}, {p.zero_point})" for name, p in codes.items() if p is not None]
        parts += [f"epilogue={q.epilogue}"] if q.epilogue else []
        parts += ["dtype=bfloat16"] if q.dtype is torch.bfloat16 else []
        return ", ".join([*parts, f"backend={self.backend}"])
