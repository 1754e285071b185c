"""Two smaller layers in the place of one: the best in the Frobenius norm, found by singular values, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: A share of the energy below which singular values are rounding noise of float32 weights.
_NOISE = 1e-12


@dataclass(frozen=True)
class Separated:
    """A kernel as a depthwise kernel and a 1x1 kernel behind it.

    Attributes:
        depthwise: (in, 1, *kernel), of norm 1 for each channel.
        pointwise: (out, in, 1, ...).
        error: ||W - product|| / ||W|| in the Frobenius norm.
    """

    depthwise: Tensor
    pointwise: Tensor
    error: float


def separate(weight: Tensor) -> Separated:
    """Split a kernel into the depthwise and the 1x1 kernel whose product is nearest to it.

    Each input channel is on its own: ``W[:, c]``, read as a matrix (out, positions), is nearest to the rank-1 matrix
    ``sigma u v^T`` of its largest singular value (Eckart-Young). The depthwise kernel is ``v``, the column of the 1x1
    kernel is ``sigma u``. Exact where each ``W[:, c]`` has rank 1.

    Args:
        weight: (out, in, *kernel), finite.

    Returns:
        Kernels in float64; the largest element of each depthwise kernel is positive.
    """
    out, channels, *kernel = weight.shape
    slices = weight.detach().double().reshape(out, channels, -1).transpose(0, 1)
    u, sigma, v = torch.linalg.svd(slices, full_matrices=False)
    spatial, mixing = v[:, 0], u[:, :, 0] * sigma[:, :1]
    largest = spatial.gather(1, spatial.abs().argmax(1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    lost = sigma[:, 1:].square().sum()
    return Separated(
        (spatial * sign).reshape(channels, 1, *kernel),
        (mixing * sign).T.reshape(out, channels, *[1] * len(kernel)).contiguous(),
        _relative(lost, sigma.square().sum()),
    )


@dataclass(frozen=True)
class Spectrum:
    """A matrix ready to be factorised at any rank.

    Attributes:
        matrix: (out, in), float64.
        singular: singular values, descending, of shape (min(out, in),).
        basis: orthonormal singular vectors of the smaller side, as columns in that order.
    """

    matrix: Tensor
    singular: Tensor
    basis: Tensor

    def rank_of(self, energy: float) -> int:
        """Return the smallest rank that keeps the share ``energy`` of the sum of squared singular values."""
        kept = self.singular.square().cumsum(0)
        wanted = (energy - _NOISE) * kept[-1]
        return min(int((kept < wanted).sum()) + 1, len(self.singular))

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return ``reduce`` (rank, in) and ``expand`` (out, rank), whose product is nearest to the matrix.

        One factor is a projection of the matrix, so the product is exact at full rank however small a singular value
        is. The scale is shared evenly: both factors have ``sqrt(sigma)`` in each component.
        """
        basis = self.basis[:, :rank]
        root = self.singular[:rank].sqrt()
        root = torch.where(root > 0, root, 1.0)
        if basis.shape[0] == self.matrix.shape[0]:
            return basis.T @ self.matrix / root[:, None], basis * root
        return basis.T * root[:, None], self.matrix @ basis / root

    def error(self, rank: int) -> float:
        """Return ||W - expand reduce|| / ||W|| in the Frobenius norm."""
        squares = self.singular.square()
        return _relative(squares[rank:].sum(), squares.sum())


def spectrum(matrix: Tensor) -> Spectrum:
    """Return the spectrum of a finite matrix (out, in).

    From the eigenvalues of the smaller Gram matrix, which takes a fraction of the time of a singular value
    decomposition. Singular values below 1e-8 of the largest are lost in that, as they are to begin with in weights of
    float32.
    """
    matrix = matrix.detach().double()
    out, inputs = matrix.shape
    gram = matrix @ matrix.T if out <= inputs else matrix.T @ matrix
    values, vectors = torch.linalg.eigh(gram)
    return Spectrum(matrix, values.flip(0).clamp_min(0.0).sqrt(), vectors.flip(1))


def _relative(lost: Tensor, whole: Tensor) -> float:
    return math.sqrt(float(lost) / float(whole)) if float(whole) > 0 else 0.0
