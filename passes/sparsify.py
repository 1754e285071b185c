"""Weights of small magnitude, set to zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from fxq.compression.magnitude import global_masks, lamp_masks, layer_masks, pattern_mask
from fxq.errors import InputError, nearest
from fxq.ir.rewriter import Rewriter
from fxq.ir.stage import Stage
from fxq.manager.base import Numerics, Pass
from fxq.manager.context import PassContext
from fxq.passes.compressing.candidates import (
    Candidate,
    as_globs,
    candidates,
    input_as_before,
    input_last,
    is_share,
    refuse,
    set_weight,
)

_RULE = "sparsify"
_SCOPES: Final[dict[str, Callable[[Sequence[Tensor], float], list[Tensor]]]] = {
    "global": global_masks,
    "layer": layer_masks,
    "lamp": lamp_masks,
}


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set the weights of small magnitude to zero: convolutions, transposed convolutions and linear layers.

        w' = w where w is among the best, else 0

        %conv = conv2d[conv](%x) {3, 8}    ->    the same, half of its weights zero
        return %conv                             return %conv

    The best of all layers together by |w| (``scope="global"``), of each layer by |w| (``"layer"``), or of all layers
    together by their LAMP score, w_u^2 divided by the sum of w_v^2 over all weights of the tensor that are at least as
    large (``"lamp"``; Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021), which takes
    from each layer what it can spare. Each tensor keeps its largest weight in any case, and ties are kept. Biases stay.

    With a pattern ``(n, m)``, the ``n`` largest of every ``m`` consecutive inputs of an output stay, at each position
    of a kernel (2 of 4 is what sparse tensor cores run; Mishra et al., arXiv:2104.08378); where ``m`` does not divide
    the inputs, the shorter group at the end keeps ``n`` too, or all that it has.

    Zeros count among the weights that go: run it with a larger sparsity after some training, and only more of them go.
    Zeros save storage (``fxq.save``), not multiply-adds. :func:`fxq.compression.keep_zeros` keeps them in training.

    Attributes:
        sparsity: the share of the weights that goes, in [0, 1). With a pattern it is 1 - n / m, and not given.
        scope: ``"global"``, ``"layer"`` or ``"lamp"``; a pattern has none.
        pattern: ``(n, m)``: n of every m stay.
        exclude: globs over the paths of layers that stay as they are.
        layers: globs over the paths of the layers to prune.

    Raises:
        InputError: an option is out of range, or a glob matches no layer.
    """

    name: ClassVar[str] = "sparsify"
    consumes: ClassVar[tuple[Stage, ...]] = (Stage.CANONICAL, Stage.FUSED)
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    sparsity: float = 0.5
    scope: str = "global"
    pattern: tuple[int, int] | None = None
    exclude: tuple[str, ...] = ()
    layers: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not is_share(self.sparsity) or self.sparsity == 1.0:
            raise InputError(f"sparsity is {self.sparsity!r}", where="Sparsify",
                             fix="give the share of weights that goes, at least 0 and below 1")  # fmt: skip
        if self.scope not in _SCOPES:
            raise InputError(f"unknown scope {self.scope!r}", where="Sparsify", fix=nearest(str(self.scope), _SCOPES))
        if self.pattern is not None:
            object.__setattr__(self, "pattern", self._checked_pattern(self.pattern))
        for option in ("exclude", "layers"):
            object.__setattr__(self, option, as_globs(getattr(self, option), option))

    def _checked_pattern(self, pattern: tuple[int, int]) -> tuple[int, int]:
        n, m = (*pattern, None, None)[:2] if isinstance(pattern, tuple | list) and len(pattern) == 2 else (None, None)
        if not (type(n) is int and type(m) is int and 0 < n < m):
            raise InputError(f"pattern is {self.pattern!r}", where="Sparsify",
                             fix="give (n, m), whole numbers with 0 < n < m: n of every m weights stay")  # fmt: skip
        if self.sparsity not in (0.5, 1 - n / m) or self.scope != "global":
            raise InputError("a pattern is given beside a sparsity or a scope", where="Sparsify",
                             why=f"{n} of every {m} weights is a sparsity of {1 - n / m:g}, in each layer",
                             fix="give one of the two")  # fmt: skip
        return n, m

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        chosen = [c for c in candidates(rw, _RULE, self.layers, self.exclude) if self._has_groups(c, rw)]
        if not chosen:
            return
        if self.pattern is None:
            masks = _SCOPES[self.scope]([c.weight for c in chosen], self.sparsity)
        else:
            masks = [_pattern(c, *self.pattern) for c in chosen]
        zeros = []
        for candidate, mask in zip(chosen, masks, strict=True):
            weight = candidate.weight.detach().masked_fill(~mask, 0.0)
            zeros.append(int((weight == 0).sum()))
            if torch.equal(weight, candidate.weight):
                refuse(rw, _RULE, candidate, f"no weight of `{candidate.path}` would go, or only zeros")
            else:
                set_weight(rw, _RULE, candidate, weight)
        context.note(_summary(chosen, zeros))

    def _has_groups(self, candidate: Candidate, rw: Rewriter) -> bool:
        """Whether the pattern can take a weight from the candidate; refuses it where it cannot."""
        inputs = input_last(candidate.module, candidate.weight).shape[-1]
        if self.pattern is None or inputs > self.pattern[0]:
            return True
        reason = f"each output of `{candidate.path}` has {inputs} inputs at a position, {self.pattern[0]} of which stay"
        refuse(rw, _RULE, candidate, reason)
        return False


def _pattern(candidate: Candidate, n: int, m: int) -> Tensor:
    mask = pattern_mask(input_last(candidate.module, candidate.weight.detach()), n, m)
    return input_as_before(candidate.module, mask)


def _summary(chosen: list[Candidate], zeros: list[int]) -> str:
    total = sum(c.weight.numel() for c in chosen)
    shares = [(zero / c.weight.numel(), c.path) for zero, c in zip(zeros, chosen, strict=True)]
    least, most = min(shares), max(shares)
    return (
        f"{sum(zeros):,} of {total:,} weights in {len(chosen)} layers are zero ({sum(zeros) / total:.1%}), "
        f"from {least[0]:.1%} in `{least[1]}` to {most[0]:.1%} in `{most[1]}`"
    )
