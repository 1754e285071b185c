"""Float layers with their epilogue inside: what ``conv -> (+ residual) -> activation`` becomes after fusion.

Each class is its ``torch.nn`` parent with one more attribute, ``epilogue``; weights keep their ``state_dict`` keys. The
result is bit-identical to the layer followed by the addition and the activation.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fxq.errors import GraphError
from fxq.nn.epilogue import Epilogue


class _Fused(nn.Module):
    """Adds ``epilogue`` to a ``torch.nn`` layer."""

    epilogue: Epilogue

    @classmethod
    def from_layer(cls, layer: nn.Module, epilogue: Epilogue) -> Self:
        """Return a fused layer that shares ``layer``'s parameters; ``layer`` itself is not changed.

        Raises:
            GraphError: if ``layer`` is not this class's parent, or its weight is computed (parametrised, weight norm).
        """
        if FUSED_LAYERS.get(type(layer)) is not cls:
            raise GraphError(f"{cls.__name__} cannot be made from {type(layer).__name__}", where="from_layer")
        if "weight" not in layer._parameters:
            raise GraphError(
                f"the weight of this {type(layer).__name__} is not a plain parameter",
                where="from_layer",
                why="a parametrisation or weight norm computes it at each call",
                fix="remove the parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)",
            )
        fused = cls.__new__(cls)
        nn.Module.__init__(fused)
        hyperparameters = {k: v for k, v in layer.__dict__.items() if k not in fused.__dict__}
        fused.__dict__.update(hyperparameters)
        fused._parameters = dict(layer._parameters)
        fused.training = layer.training
        fused.epilogue = epilogue
        return fused

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, epilogue={self.epilogue}"


class FusedConv1d(_Fused, nn.Conv1d):
    """``epilogue(Conv1d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.epilogue.apply_to_own(nn.Conv1d.forward(self, x), residual)


class FusedConv2d(_Fused, nn.Conv2d):
    """``epilogue(Conv2d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.epilogue.apply_to_own(nn.Conv2d.forward(self, x), residual)


class FusedConv3d(_Fused, nn.Conv3d):
    """``epilogue(Conv3d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.epilogue.apply_to_own(nn.Conv3d.forward(self, x), residual)


class FusedConvTranspose1d(_Fused, nn.ConvTranspose1d):
    """``epilogue(ConvTranspose1d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.epilogue.apply_to_own(nn.ConvTranspose1d.forward(self, x), residual)


class FusedConvTranspose2d(_Fused, nn.ConvTranspose2d):
    """``epilogue(ConvTranspose2d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.epilogue.apply_to_own(nn.ConvTranspose2d.forward(self, x), residual)


class FusedConvTranspose3d(_Fused, nn.ConvTranspose3d):
    """``epilogue(ConvTranspose3d(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.epilogue.apply_to_own(nn.ConvTranspose3d.forward(self, x), residual)


class FusedLinear(_Fused, nn.Linear):
    """``epilogue(Linear(x), residual)``."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.epilogue.apply_to_own(nn.Linear.forward(self, x), residual)


FUSED_LAYERS: dict[type[nn.Module], type[Any]] = {
    nn.Conv1d: FusedConv1d,
    nn.Conv2d: FusedConv2d,
    nn.Conv3d: FusedConv3d,
    nn.ConvTranspose1d: FusedConvTranspose1d,
    nn.ConvTranspose2d: FusedConvTranspose2d,
    nn.ConvTranspose3d: FusedConvTranspose3d,
    nn.Linear: FusedLinear,
    NonDynamicallyQuantizableLinear: FusedLinear,
}


def fuse_layer(layer: nn.Module, epilogue: Epilogue) -> nn.Module:
    """Return the fused form of ``layer`` (exactly one of ``FUSED_LAYERS``' keys), sharing its parameters.

    Raises:
        GraphError: for any other type, a subclass included: its ``forward`` may do something else.
    """
    cls = FUSED_LAYERS.get(type(layer))
    if cls is None:
        raise GraphError(
            f"{type(layer).__name__} has no fused form",
            fix="fusable layers: " + ", ".join(t.__name__ for t in FUSED_LAYERS),
        )
    fused: nn.Module = cls.from_layer(layer, epilogue)
    return fused
