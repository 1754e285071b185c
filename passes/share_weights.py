"""Weights that share few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxq.compression.sharing import ENTRY_BITS, share, shared_bits
from fxq.errors import InputError
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.compressing.candidates import as_globs, candidates, refuse, set_weight

_RULE = "share_weights"


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Let the weights of each layer take at most ``2 ** bits`` distinct values, the means of clusters.

    One-dimensional k-means for each weight tensor: w' = the centroid nearest to w, a centroid the mean of its weights,
    the first centroids evenly spaced between the smallest and the largest weight (Han et al., Deep Compression:
    Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman Coding, ICLR 2016, section 3).

        %conv = conv2d[conv](%x) {64, 64}    ->    the same, its 36,864 weights take 16 values
        return %conv                               return %conv

    A tensor of n weights then holds n codes of ``bits`` bits and a codebook of 2^bits values of 32 bits, which is how
    ``fxq.save`` writes it. Convolutions, transposed convolutions and linear layers; biases stay.
    :func:`fxq.compression.train_shared` trains the codebooks.

    Attributes:
        bits: 2 to 8.
        layers: globs over the paths of the layers to share.
        exclude: globs over the paths of layers that stay as they are.
        keep_zeros: exact zeros, of a pruned tensor say, are an entry of the codebook and stay exact zeros.

    Raises:
        InputError: an option is out of range, or a glob matches no layer.
    """

    name: ClassVar[str] = "share_weights"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    bits: int = 4
    layers: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    keep_zeros: bool = True

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 8:
            raise InputError(f"bits is {self.bits!r}", where="ShareWeights", fix="give a whole number from 2 to 8")
        for option in ("layers", "exclude"):
            object.__setattr__(self, option, as_globs(getattr(self, option), option))

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        count, before, after = 0, 0, 0
        for candidate in candidates(rw, _RULE, self.layers, self.exclude):
            weights = candidate.weight.numel()
            plain, shared = weights * ENTRY_BITS, shared_bits(weights, self.bits)
            if shared >= plain:
                reason = f"`{candidate.path}` has {weights} weights: codes and a codebook of {2**self.bits} take more"
                refuse(rw, _RULE, candidate, reason)
                continue
            count, before, after = count + 1, before + plain, after + shared
            weight = share(candidate.weight, self.bits, self.keep_zeros)
            if torch.equal(weight, candidate.weight):
                reason = f"the weights of `{candidate.path}` take at most {2**self.bits} values already"
                refuse(rw, _RULE, candidate, reason)
            else:
                set_weight(rw, _RULE, candidate, weight)
        if count:
            context.note(
                f"{count} layers share {2**self.bits} values each: {before // 8:,} bytes of weights become "
                f"{after // 8:,} ({self.bits} bits a weight and {2**self.bits} x {ENTRY_BITS} bits a layer), "
                f"{before / after:.1f} times fewer"
            )
