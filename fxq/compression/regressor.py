"""What lets values of different widths be compared: a learnable 1x1 convolution."""

from __future__ import annotations

from torch import Tensor, nn

from fxq.errors import InputError


class Regressor(nn.Module):
    """A 1x1 convolution over dimension ``dim``, for values of any rank: from the student's width to the teacher's."""

    def __init__(self, value: Tensor, wanted: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mix = nn.Linear(value.shape[dim], wanted.shape[dim], device=value.device, dtype=value.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., student's width, ...) -> (..., teacher's width, ...)."""
        mixed: Tensor = self.mix(x.movedim(self.dim, -1))
        return mixed.movedim(-1, self.dim)


def differing_dim(value: Tensor, wanted: Tensor, names: str) -> int:
    """Return the one dimension, the first behind the batch or the last, in which two values differ.

    Raises:
        InputError: they differ in more, or in another one.
    """
    ours, theirs = tuple(value.shape), tuple(wanted.shape)
    differ = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b]
    if len(ours) != len(theirs) or len(differ) != 1 or differ[0] not in (1, len(ours) - 1):
        raise InputError(f"the values at {names} do not fit together: {ours} and {theirs}", where="hints",
                         why="they may differ in their channels alone",
                         fix="name places with the same resolution")  # fmt: skip
    return differ[0]
