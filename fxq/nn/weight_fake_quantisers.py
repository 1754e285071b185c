"""Modules that fake-quantise a layer's weight while it trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxq.nn.fake_quant import attach, fake_quantise_weight, learned_fake_quantise_weight
from fxq.nn.fake_quantisers import check_learned, in_units, power_of_two, project
from fxq.quant.options import Options


class WeightFakeQuantise(nn.Module):
    """A weight as its int8 codes stand for it. The scale follows the weight, as :class:`fxq.Recipe` has it.

    Args:
        options: granularity and range of the scales.
        label: the layer, for error messages.

    Attributes:
        quantising: the switch of the fake quantisation.
    """

    def __init__(self, options: Options, label: str = "") -> None:
        super().__init__()
        self.options, self.label = options, label
        self.quantising = True

    def forward(self, rows: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return a weight, output channels first, fake-quantised. ``gain`` as in :meth:`scales`."""
        return fake_quantise_weight(rows, self.scales(rows, gain))

    def scales(self, rows: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return the scales of a weight, float32 of shape (output channels,) or (1,).

        Args:
            rows: the weight, output channels first, a batch norm folded into it.
            gain: float32 of shape (output channels,): what folding multiplied the weight by, without the sign.
        """
        return self.options.weight_scale(rows.detach().flatten(1))

    def pass_on(self, x: Tensor) -> Tensor:
        """Return ``x``: what a layer does while the quantiser is switched off."""
        return x

    def get_extra_state(self) -> Tensor:
        """The switch, as a tensor: what a state dict holds."""
        return torch.tensor(self.quantising, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what ``get_extra_state`` returned."""
        self.quantising = bool(state)

    def extra_repr(self) -> str:
        return f"{self.options.weight}, {self.options.weight_range}"


class LearnedWeightFakeQuantise(WeightFakeQuantise):
    """A weight as its int8 codes stand for it, with scales that are trained (LSQ).

    ``scale = step * unit`` as in :class:`fxq.nn.fake_quantisers.LearnedFakeQuantise`. Scales per channel are those of
    the weight before a batch norm is folded into it, so that they need not follow the statistics.

    Args:
        rows: the weight that the scales start from, output channels first, no batch norm folded into it.
        gain: what folding multiplies it by, without the sign and nowhere zero; None for 1.

    Attributes:
        step: the scales in units, a parameter of shape (output channels,) or (1,).
    """

    unit: Tensor

    def __init__(self, options: Options, rows: Tensor, gain: Tensor | None = None, label: str = "") -> None:
        super().__init__(options, label)
        rows = rows.detach().flatten(1)
        scale = options.weight_scale(rows if gain is None else rows * gain.unsqueeze(1))
        if gain is not None and scale.shape == gain.shape:
            scale = scale / gain
        self.register_buffer("unit", power_of_two(scale))
        self.step = nn.Parameter(scale / self.unit)

    def forward(self, rows: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return a weight, output channels first, fake-quantised.

        Raises:
            InputError: training has made a scale infinite, or not a number.
        """
        return learned_fake_quantise_weight(rows, self.scales(rows, gain))

    def scales(self, rows: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return the learned scales.

        Raises:
            InputError: training has made a scale infinite, or not a number.
        """
        check_learned(self.step, self.label)
        scale = in_units(project(self.step, self.training), self.unit)
        if gain is not None and scale.shape == gain.shape:
            scale = scale * gain
        # 7 bits leave no room for clipping: a smaller scale would give codes above 63
        return torch.maximum(scale, super().scales(rows)) if self.options.reduce_range else scale

    def pass_on(self, x: Tensor) -> Tensor:
        """Return ``x``, so that the scales get a gradient of zero."""
        return attach(x, self.step) if torch.is_grad_enabled() else x

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, learned"
