"""What follows a convolution or a linear layer inside one fused module: an addition, then an activation function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxq.errors import GraphError, nearest

Param = float | str

# name -> (function of the tensor and the parameters, number of parameters)
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "relu": (F.relu, 0),
    "relu6": (F.relu6, 0),
    "hardtanh": (F.hardtanh, 2),
    "hardswish": (F.hardswish, 0),
    "silu": (F.silu, 0),
    "gelu": (lambda y, approximate: F.gelu(y, approximate=approximate), 1),
    "leaky_relu": (F.leaky_relu, 1),
    "sigmoid": (torch.sigmoid, 0),
    "tanh": (torch.tanh, 0),
    "hardsigmoid": (F.hardsigmoid, 0),
}

ACTIVATIONS = tuple(_ACTIVATIONS)

# the same bits, written over the tensor
_IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
} | {
    name: functools.partial(_ACTIVATIONS[name][0], inplace=True)
    for name in ("relu6", "hardtanh", "hardswish", "silu", "leaky_relu", "hardsigmoid")
}


@dataclass(frozen=True)
class Epilogue:
    """``y -> activation(y + residual)``, each part optional.

    Args:
        activation: one of ``ACTIVATIONS`` or None.
        params: the activation's parameters in order: hardtanh (min, max), gelu (approximate,), leaky_relu
            (negative_slope,); the others take none.
        add: whether a residual is added before the activation.
        residual_first: whether the sum is ``residual + y``. The numbers are the same, but a sum lies in memory as its
            first summand does, and the kernels that read it may round by that. int8 kernels do not ask.

    Raises:
        GraphError: for an unknown activation or a wrong number of parameters.
    """

    activation: str | None = None
    params: tuple[Param, ...] = ()
    add: bool = False
    residual_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple(self.params))
        if self.activation is None:
            wanted = 0
        elif self.activation in _ACTIVATIONS:
            wanted = _ACTIVATIONS[self.activation][1]
        else:
            raise GraphError(
                f"an epilogue has no activation {self.activation!r}", fix=nearest(self.activation, ACTIVATIONS)
            )
        if len(self.params) != wanted:
            raise GraphError(f"{self.activation} takes {wanted} parameters, not {self.params}", where="Epilogue")

    def apply(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return ``activation(y + residual)`` as a new tensor (or ``y`` itself for an empty epilogue).

        Raises:
            GraphError: if a residual is missing, or given where none is added.
        """
        self.check(residual)
        if residual is not None:
            y = residual + y if self.residual_first else y + residual
        return self.activate(y)

    def apply_to_own(self, y: Tensor, residual: Tensor | None = None) -> Tensor:
        """Like :meth:`apply` with the same bits, for a ``y`` that nobody else reads: it is overwritten where it can be.

        New memory for a large result takes longer than the activation itself. Where gradients are recorded they need
        ``y`` as it was, and GELU has no such form.
        """
        if y.requires_grad or (residual is not None and residual.requires_grad):
            return self.apply(y, residual)
        self.check(residual)
        if residual is not None:
            y = residual + y if self.residual_first else y + residual
        return _IN_PLACE[self.activation](y, *self.params) if self.activation in _IN_PLACE else self.activate(y)

    def activate(self, y: Tensor) -> Tensor:
        """The activation alone."""
        if self.activation is None:
            return y
        return _ACTIVATIONS[self.activation][0](y, *self.params)

    def check(self, residual: object | None) -> None:
        """Raise GraphError unless ``residual`` is given exactly when this epilogue adds one."""
        if (residual is not None) != self.add:
            raise GraphError(
                f"the layer's epilogue is {str(self)!r} but a residual was {'not ' if residual is None else ''}given",
                fix="give the residual as second argument exactly when the epilogue adds",
            )

    @property
    def bounds(self) -> tuple[float, float] | None:
        """(min, max) when the activation only clips (relu, relu6, hardtanh), else None."""
        match self.activation:
            case "relu":
                return 0.0, float("inf")
            case "relu6":
                return 0.0, 6.0
            case "hardtanh":
                return float(self.params[0]), float(self.params[1])
            case _:
                return None

    def __bool__(self) -> bool:
        return self.add or self.activation is not None

    def __str__(self) -> str:
        name = self.activation or ""
        if self.params:
            name += "(" + ", ".join(p if isinstance(p, str) else f"{p:g}" for p in self.params) + ")"
        return "_".join(part for part in ("add" if self.add else "", name) if part) or "none"
