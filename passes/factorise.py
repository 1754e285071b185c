"""Convolutions and linear layers, replaced by pairs of low rank."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fxq.compression.low_rank import Spectrum, spectrum
from fxq.errors import InputError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.compressing.candidates import Candidate, as_globs, candidates, is_share, refuse
from fxq.passes.compressing.pairs import Pair, unfit, write_pair

_RULE = "factorise"
_ENERGY = 0.9


@dataclass(frozen=True)
class Factorise(Pass):
    """Replace a layer by two whose product is the best approximation of its weights at a lower rank r.

        linear        W (out, in) ~ E R:   R to r features, E from r to out; r (in + out) for in * out weights
        convolution   W, read as a matrix (C_out, C_in K^2): a K x K convolution to r channels, then a 1x1 convolution;
                      r (C_in K^2 + C_out) for C_out C_in K^2

    E R is the truncated singular value decomposition (Denton et al., Exploiting Linear Structure Within Convolutional
    Networks for Efficient Evaluation, NeurIPS 2014; Zhang et al., Accelerating Very Deep Convolutional Networks for
    Classification and Detection, TPAMI 2016, section 3.1, without its data). Multiply-adds and weights fall by the
    same ratio; where they would not, the layer stays.

        %fc = linear[fc](%x) {in_features=512, out_features=512, bias=True}
        return %fc
    ->
        %fc_reduce = linear[fc.reduce](%x) {in_features=512, out_features=64, bias=False}
        %fc = linear[fc.expand](%fc_reduce) {in_features=64, out_features=512, bias=True}
        return %fc

    Stride, padding and dilation stay with the first half, bias and epilogue with the second. The rank and the relative
    error ``||W - E R|| / ||W||`` of each layer are in the notes.

    Attributes:
        energy: the share of the sum of squared singular values that each layer keeps, in (0, 1]; the default, 0.9.
        rank: the rank of every layer.
        ratio: the share of multiply-adds that each layer keeps at most, in (0, 1).
        layers: globs over the paths of the layers to replace.
        exclude: globs over the paths of layers that stay as they are.

    Raises:
        InputError: an option is out of range, more than one of energy, rank and ratio is given, or a glob matches no
            layer.
    """

    name: ClassVar[str] = "factorise"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    energy: float | None = None
    rank: int | None = None
    ratio: float | None = None
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = [name for name in ("energy", "rank", "ratio") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are given together", where="Factorise",
                             why="each of them alone says what the rank is", fix="give one")  # fmt: skip
        for name, fits, wanted in (
            (
                "energy",
                self.energy is None or (is_share(self.energy) and self.energy > 0),
                "a share above 0 and up to 1",
            ),
            ("rank", self.rank is None or (type(self.rank) is int and self.rank > 0), "a positive whole number"),
            ("ratio", self.ratio is None or (is_share(self.ratio) and 0 < self.ratio < 1), "a share between 0 and 1"),
        ):
            if not fits:
                raise InputError(f"{name} is {getattr(self, name)!r}", where="Factorise", fix=f"give {wanted}")
        for option in ("layers", "exclude"):
            object.__setattr__(self, option, as_globs(getattr(self, option), option))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for candidate in candidates(rw, _RULE, self.layers, self.exclude):
            reason = unfit(candidate, _RULE, rw) or self._too_small(candidate)
            if reason is not None:
                refuse(rw, _RULE, candidate, reason)
                continue
            found = spectrum(candidate.weight.flatten(1))
            rank = self._rank(found)
            ratio = _ratio(found.matrix, rank)
            if ratio >= 1.0:
                reason = f"`{candidate.path}` would not get cheaper: it needs rank {rank} of {len(found.singular)}"
                refuse(rw, _RULE, candidate, reason)
                continue
            context.note(
                f"`{candidate.path}`: rank {rank} of {len(found.singular)}, {ratio:.1%} of its MACs, "
                f"relative error {found.error(rank):.3g}"
            )
            write_pair(rw, _RULE, candidate, _pair(candidate, *found.factors(rank)))

    def _too_small(self, candidate: Candidate) -> str | None:
        """Say that the layer is too small for the option, where that can be said without its singular values."""
        matrix = candidate.weight.flatten(1)
        least = self.rank or 1
        if self.ratio is not None and _ratio(matrix, 1) > self.ratio:
            return f"`{candidate.path}` would keep {_ratio(matrix, 1):.0%} of its MACs at rank 1"
        if _ratio(matrix, least) >= 1.0:
            return f"`{candidate.path}` would not get cheaper at rank {least}"
        return None

    def _rank(self, found: Spectrum) -> int:
        if self.rank is not None:
            return self.rank
        if self.ratio is not None:
            return max(1, math.floor(self.ratio / _ratio(found.matrix, 1) + 1e-9))
        return found.rank_of(_ENERGY if self.energy is None else self.energy)


def _ratio(matrix: Tensor, rank: int) -> float:
    """The multiply-adds, and the weights, of a pair of ``rank``, as a share of those of the layer."""
    out, inputs = matrix.shape
    return rank * (out + inputs) / (out * inputs)


def _pair(candidate: Candidate, reduce: Tensor, expand: Tensor) -> Pair:
    if not isinstance(candidate.module, nn.Linear):
        kernel = candidate.weight.shape[2:]
        reduce = reduce.reshape(len(reduce), -1, *kernel)
        expand = expand.reshape(*expand.shape, *[1] * len(kernel))
    return Pair(reduce, expand, ("reduce", "expand"))
