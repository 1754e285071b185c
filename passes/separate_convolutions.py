"""Standard convolutions, replaced by a depthwise and a 1x1 convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fxq.compression.low_rank import separate
from fxq.errors import InputError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.compressing.candidates import Candidate, as_globs, candidates, is_share, refuse
from fxq.passes.compressing.pairs import Pair, unfit, write_pair

_RULE = "separate_convolutions"


@dataclass(frozen=True)
class SeparateConvolutions(Pass):
    """Replace a K x K convolution by a depthwise K x K convolution and a 1x1 convolution behind it.

    The multiply-adds fall to ``1 / C_out + 1 / K^2`` of what they were (Howard et al., MobileNets, arXiv:1704.04861,
    section 3.1), and so do the weights; where that is not less than 1, the layer stays. The initial weights are the
    best in the Frobenius norm: of each input channel's slice ``W[:, c]``, a matrix (C_out, K^2), the leading singular
    triple, ``depthwise[c] = v``, ``pointwise[:, c] = sigma u``. That is exact where the slices have rank 1, and else a
    beginning for training, best by :func:`fxq.distill` from the original.

        %conv = conv2d[conv](%x) {64, 128, (3, 3), padding=(1, 1)}
        return %conv
    ->
        %conv_depthwise = conv2d[conv.depthwise](%x) {64, 64, (3, 3), padding=(1, 1), groups=64, bias=False}
        %conv = conv2d[conv.pointwise](%conv_depthwise) {64, 128, (1, 1)}
        return %conv

    Stride, padding and dilation stay with the first half, bias and epilogue with the second. The relative error
    ``||W - W'|| / ||W||`` of each layer is in the notes.

    Attributes:
        layers: globs over the paths of the layers to replace.
        exclude: globs over the paths of layers that stay as they are.
        max_error: layers with a larger relative error stay as they are; 1 replaces all.

    Raises:
        InputError: an option is out of range, or a glob matches no layer.
    """

    name: ClassVar[str] = "separate_convolutions"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    max_error: float = 1.0

    def __post_init__(self) -> None:
        if not is_share(self.max_error):
            raise InputError(f"max_error is {self.max_error!r}", where="SeparateConvolutions",
                             fix="give a relative error from 0 to 1")  # fmt: skip
        for option in ("layers", "exclude"):
            object.__setattr__(self, option, as_globs(getattr(self, option), option))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for candidate in candidates(rw, _RULE, self.layers, self.exclude):
            reason = _not_worth_it(candidate) or unfit(candidate, _RULE, rw)
            if reason is not None:
                refuse(rw, _RULE, candidate, reason)
                continue
            halves = separate(candidate.weight)
            if halves.error > self.max_error:
                reason = f"the relative error of `{candidate.path}` would be {halves.error:.3f}"
                refuse(rw, _RULE, candidate, reason)
                continue
            pair = Pair(halves.depthwise, halves.pointwise, ("depthwise", "pointwise"), candidate.weight.shape[1])
            context.note(f"`{candidate.path}`: {_ratio(candidate):.1%} of its MACs, relative error {halves.error:.3g}")
            write_pair(rw, _RULE, candidate, pair)


def _ratio(candidate: Candidate) -> float:
    """The multiply-adds of the pair, as a share of those of the layer: 1 / C_out + 1 / K^2."""
    out, _, *kernel = candidate.weight.shape
    return 1 / out + 1 / math.prod(kernel)


def _not_worth_it(candidate: Candidate) -> str | None:
    layer: Any = candidate.module
    if isinstance(layer, nn.Linear):
        return f"`{candidate.path}` is a linear layer"
    if math.prod(layer.kernel_size) == 1:
        return f"the kernel of `{candidate.path}` is 1x1 already"
    if not (layer.transposed or layer.groups > 1) and _ratio(candidate) >= 1.0:
        return f"`{candidate.path}` would not get cheaper: {layer.out_channels} output channels are too few"
    return None
