"""The line that brings the outputs of a quantised layer back to the float network's, for each output channel."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

#: Slopes beyond these are no systematic error of rounding: the channel keeps a slope of 1.
_STEEPEST: Final = 2.0
#: Of a channel's mean square: with less variance than that its values are one value, and have no slope.
_LEAST_VARIANCE: Final = 1e-6


class ChannelFit:
    """Least squares of ``wanted ~ slope * given + shift``, as far as the samples tell it from chance.

    Rounding moves the mean of a channel, and clipping and rounding in front of it shrink or stretch it: a slope of 1.01
    costs as much as noise at 40 dB, in every layer in the same direction.

    What one sample says, over its positions, is one observation: positions of an image depend on each other, images do
    not. An estimate m of the distance from 1 (slope) or from 0 (shift) that is uncertain by a variance v becomes
    ``m max(0, 1 - v / m^2)``, the positive-part shrinkage towards zero (James and Stein, Estimation with Quadratic
    Loss, 1961): a correction that is only chance would make the error on other data larger.

    Attributes:
        slopes: whether there are slopes; else all are 1, and the shift is the mean of ``wanted - given``.
    """

    def __init__(self, slopes: bool = True) -> None:
        self.slopes = slopes
        self._given: list[Tensor] = []
        self._error: list[Tensor] = []
        self._square: list[Tensor] = []
        self._product: list[Tensor] = []

    def add(self, wanted: Tensor, given: Tensor, channel_axis: int) -> None:
        """Take one batch of outputs in front of the epilogue, both of one shape with the samples first.

        Args:
            channel_axis: the axis of the channels; 0 says that there is a single sample, without an axis of its own.
        """
        error = wanted - given
        if channel_axis in (0, -given.dim()):
            given, error, channel_axis = given.unsqueeze(0), error.unsqueeze(0), 1
        given, error = _channels_second(given, channel_axis), _channels_second(error, channel_axis)
        self._given.append(given.mean(2).double())
        self._error.append(error.mean(2).double())
        if self.slopes:
            positions = max(given.shape[2], 1)
            self._square.append(torch.linalg.vecdot(given, given).double() / positions)
            self._product.append(torch.linalg.vecdot(given, error).double() / positions)

    def line(self) -> tuple[Tensor, Tensor]:
        """Slope and shift of each channel, float64. A single sample tells nothing about chance: its shift is taken as
        it is, and the slope is 1."""
        given, error = torch.cat(self._given), torch.cat(self._error)
        gain = self._gain(given, error) if self.slopes else torch.zeros_like(given[0])
        return 1.0 + gain, _shrunk(error - gain * given)

    def _gain(self, given: Tensor, error: Tensor) -> Tensor:
        """The slopes less 1: of the error on what is given."""
        mean, square = given.mean(0), torch.cat(self._square).mean(0)
        variance = square - mean.square()
        products = torch.cat(self._product) - mean * error - error.mean(0) * (given - mean)
        flat = (variance <= _LEAST_VARIANCE * square) | torch.tensor(len(given) < 2, device=given.device)
        gain = torch.where(flat, 0.0, _shrunk(products) / torch.where(flat, 1.0, variance))
        return torch.where((gain + 1.0 < _STEEPEST) & (gain + 1.0 > 1.0 / _STEEPEST), gain, 0.0)


def _channels_second(values: Tensor, axis: int) -> Tensor:
    """(samples, channels, positions), whichever axis the channels have."""
    values = values.movedim(axis, 1)
    return values.flatten(2) if values.dim() > 2 else values.unsqueeze(2)


def _shrunk(observations: Tensor) -> Tensor:
    """The mean over samples, nearer to zero by how far chance may have taken it from there."""
    count, mean = len(observations), observations.mean(0)
    if count < 2:
        return mean
    variance = observations.var(0) / count
    return mean * (1.0 - variance / mean.square().clamp_min(torch.finfo(torch.float64).tiny)).clamp_min(0.0)
