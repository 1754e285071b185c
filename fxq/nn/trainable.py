"""Layers that train with fake quantisation: a convolution or linear layer with all that was fused to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxq.nn.epilogue import Epilogue
from fxq.nn.fake_quantisers import codes_of
from fxq.nn.fused import fuse_layer
from fxq.nn.geometry import ConvGeometry, swap_channels
from fxq.nn.kernels import Quantisation, Weights, reference
from fxq.nn.qdq import quantize
from fxq.nn.recomputing import recomputing
from fxq.nn.weight_fake_quantisers import WeightFakeQuantise
from fxq.quant.qparams import quantize_weight

_CONV: dict[tuple[int, bool], type[nn.Module]] = {
    (1, False): nn.Conv1d, (2, False): nn.Conv2d, (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d, (2, True): nn.ConvTranspose2d, (3, True): nn.ConvTranspose3d,
}  # fmt: skip
_PLAIN_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_LEAST_GAIN = 2.0**-40  # a batch norm with weight 0 still has a sign, and statistics to keep


class TrainableLayer(nn.Module):
    """``epilogue(dropout(norm(layer(x))), residual)`` with a fake-quantised weight.

    The weight is quantised as it will be in int8: with the batch norm folded into it, ``w s``, ``s = gamma /
    sqrt(var + eps)`` with the running variance. In eval mode, and where the statistics are frozen, that is all: ``y =
    conv(x, q(w s)) + (b - mean) s + beta``. In training mode the batch norm normalises with the statistics of the batch
    what the layer gives with the weight ``q(w s) / s`` (Krishnamoorthi, arXiv:1806.08342, section 3.2.2: the folded
    scale is the running one, and its error against the batch's is taken out of the output). The running statistics
    are those of the quantised layer, errors of rounding included. With the fake quantisation switched off both are the
    layer and the batch norm one after the other.

    In eval mode without gradients the product is that of the integer codes, as the ``reference`` kernels compute it,
    bit for bit: a sum of products that float32 has rounded in another order may round to another code behind.

    Args:
        layer: a convolution, transposed convolution or linear layer; its parameters are shared.
        norm: the batch norm behind it.
        quantiser: of the weight; None leaves the layer in float.
        epilogue: what is fused behind.

    Attributes:
        frozen: whether the batch norm uses its running statistics in training mode too, and leaves them alone.
        dropout: between the layer and its epilogue; None where the model has none there.
    """

    weight: Tensor
    bias: Tensor | None
    norm: _BatchNorm | None
    quantiser: WeightFakeQuantise | None
    dropout: nn.Module | None

    def __init__(
        self, layer: nn.Module, norm: nn.Module | None, quantiser: WeightFakeQuantise | None, epilogue: Epilogue
    ) -> None:
        super().__init__()
        self.geometry = None if isinstance(layer, nn.Linear) else ConvGeometry.of(layer)
        self.epilogue = epilogue
        self.frozen = False
        self.register_parameter("weight", layer._parameters["weight"])
        self.register_parameter("bias", layer._parameters["bias"])
        self.register_module("norm", norm)
        self.register_module("quantiser", quantiser)
        self.register_module("dropout", None)
        self.train(layer.training)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Like the layer's own, with the residual that the epilogue adds."""
        if self.norm is not None and self.norm.training and not self.frozen:
            y = normalise(self.norm, self._product(x, self._quantised_unfolded(), self.bias))
        else:
            y = self._folded_product(x, *self.folded())
        if self.dropout is not None:
            y = self.dropout(y)
        return self.epilogue.apply(y, residual)

    # -- the weight --------------------------------------------------------------------------------------------

    def rows(self) -> Tensor:
        """The weight with output channels first."""
        groups = self._swapped_groups
        return self.weight if groups is None else swap_channels(self.weight, groups)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (output channels first) and bias with the batch norm's running statistics folded in.

        Computed in float64 and rounded once, as the pass that folds batch norms does.
        """
        rows = self.rows()
        if self.norm is None:
            return rows, self.bias
        mean = self._statistic("running_mean")
        gain = self._gain()
        shift = -mean * gain
        if self.norm.bias is not None:
            shift = shift + self.norm.bias.double()
        bias = shift if self.bias is None else self.bias.double() * gain + shift
        return (rows.double() * _along(gain, rows)).to(rows.dtype), bias.to(rows.dtype)

    def weight_scales(self) -> Tensor | None:
        """Return the scales of the folded weight, float32; None where the layer stays in float."""
        return None if self.quantiser is None else self.quantiser.scales(self.folded()[0], self.gain_size())

    @torch.no_grad()
    def to_float(self) -> nn.Module:
        """Return the float layer, fused, that computes what this one does in eval mode, its weight not quantised."""
        rows, bias = self.folded()
        groups = self._swapped_groups
        weight = rows if groups is None else swap_channels(rows, groups)
        layer = self.empty_layer(bias is not None)
        layer.register_parameter("weight", nn.Parameter(weight.detach().clone(), requires_grad=False))
        if bias is not None:
            layer.register_parameter("bias", nn.Parameter(bias.detach().clone(), requires_grad=False))
        return fuse_layer(layer.eval(), self.epilogue) if self.epilogue else layer.eval()

    def gain_size(self) -> Tensor | None:
        """What folding multiplies each output channel by, without its sign and never zero; float32, detached."""
        return None if self.norm is None else self._gain().detach().abs().clamp_min(_LEAST_GAIN).float()

    def _gain(self) -> Tensor:
        assert self.norm is not None
        gain = 1.0 / torch.sqrt(self._statistic("running_var") + self.norm.eps)
        return gain if self.norm.weight is None else gain * self.norm.weight.double()

    def _statistic(self, name: str) -> Tensor:
        found = getattr(self.norm, name)
        assert isinstance(found, Tensor)
        return found.double()

    def _quantised(self, rows: Tensor) -> Tensor:
        quantiser = self.quantiser
        if quantiser is None:
            return rows
        return quantiser(rows, self.gain_size()) if quantiser.quantising else quantiser.pass_on(rows)

    def _quantised_unfolded(self) -> Tensor:
        """The weight, quantised as it is when folded, and unfolded again."""
        rows, size = self.rows(), self.gain_size()
        if self.quantiser is None or not self.quantiser.quantising or size is None:
            return self._quantised(rows)
        gain = _along(torch.where(self._gain() < 0, -size, size).to(rows.dtype), rows)
        return self._quantised(rows * gain) / gain

    def _folded_product(self, x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        codes, quantiser = codes_of(x), self.quantiser
        on_codes = codes is not None and quantiser is not None and quantiser.quantising
        if codes is None or not on_codes or x.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type):
            return self._product(x, self._quantised(rows), bias)
        weight, scale = quantize_weight(rows, 0, self.weight_scales())
        quantisation = Quantisation(codes, None)
        q = quantize(x, codes.scale, codes.zero_point)
        if self.geometry is None:
            return reference.linear(quantisation, Weights(weight, scale, bias))(q, None)
        groups = self._swapped_groups
        weight = weight if groups is None else swap_channels(weight, groups)
        return reference.conv(self.geometry, quantisation, Weights(weight, scale, bias), x.shape)(q, None)

    # -- the layer ---------------------------------------------------------------------------------------------

    def empty_layer(self, bias: bool) -> nn.Module:
        """Return a layer of torch.nn like the one that this was made from, on the meta device."""
        g = self.geometry
        if g is None:
            return nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=bias, device="meta")
        settings: dict[str, Any] = {"output_padding": g.output_padding} if g.transposed else {}
        padding = tuple(before for before, _ in g.pads) if all(a == b for a, b in g.pads) else "same"
        cls: Any = _CONV[g.dims, g.transposed]
        layer: nn.Module = cls(g.in_channels, g.out_channels, g.kernel_size, g.stride, padding, dilation=g.dilation,
                               groups=g.groups, bias=bias, padding_mode=g.padding_mode, device="meta", **settings,
                               )  # fmt: skip
        return layer

    @property
    def _swapped_groups(self) -> int | None:
        return self.geometry.groups if self.geometry is not None and self.geometry.transposed else None

    def _product(self, x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        if self.geometry is None:
            return F.linear(x, rows, bias)
        groups = self._swapped_groups
        return self.geometry.convolve(x, rows if groups is None else swap_channels(rows, groups), bias)

    def get_extra_state(self) -> Tensor:
        """The switch, as a tensor: what a state dict holds."""
        return torch.tensor(self.frozen, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what ``get_extra_state`` returned."""
        self.frozen = bool(state)

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.weight.shape)) if self.geometry is None else self.geometry.describe()
        return f"{shape}, epilogue={self.epilogue}" + (", frozen" if self.frozen else "")


class TrainableNorm(nn.Module):
    """A batch norm with running statistics that stands alone and can be frozen.

    Attributes:
        frozen: whether it uses its running statistics in training mode too, and leaves them alone.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.frozen = False
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Like the batch norm's own."""
        norm = self.norm
        if norm.training and not self.frozen:
            return normalise(norm, x)
        if codes_of(x) is not None and x.dtype == torch.float32:  # eval mode without gradients: as int8 computes it
            return _scaled(norm, x)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)

    def get_extra_state(self) -> Tensor:
        """The switch, as a tensor: what a state dict holds."""
        return torch.tensor(self.frozen, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what ``get_extra_state`` returned."""
        self.frozen = bool(state)


def normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Apply a batch norm in training mode; where a checkpoint recomputes, without counting the batch again."""
    if recomputing() and isinstance(norm, _PLAIN_NORMS) and norm.running_mean is not None:
        # copies, so that as many tensors are saved for the backward as the first time, which checkpoint checks
        mean, var = norm.running_mean.clone(), None if norm.running_var is None else norm.running_var.clone()
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, True, 0.0, norm.eps)
    out: Tensor = norm(x)
    return out


def _scaled(norm: _BatchNorm, x: Tensor) -> Tensor:
    """``x * scale + shift`` with both rounded to float32, which is what ``QBatchNorm`` computes."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.double()
    shape = (-1, *(1,) * (x.dim() - 2))
    return x * scale.float().reshape(shape) + shift.float().reshape(shape)


def _along(gain: Tensor, rows: Tensor) -> Tensor:
    return gain.reshape(-1, *(1,) * (rows.dim() - 1))
