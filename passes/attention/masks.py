"""What shuts keys out of an attention: a mask of the scores, a padding of the keys, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxq.ir.shapes import tensor_spec
from fxq.passes.graph.writer import Writer


@dataclass(frozen=True)
class Mask:
    """A value that broadcasts against the scores ``[batch, heads, queries, keys]``.

    Attributes:
        node: a boolean value shuts out the keys where it is True; another is added to the scores.
        boolean: whether it is boolean.
    """

    node: fx.Node
    boolean: bool


def write_mask(to: Writer, scores: Any, padding: Any, heads: int) -> Mask | None:
    """Merge what a module is given into one mask; None where it is given neither.

    Args:
        scores: ``attn_mask``, ``[queries, keys]`` or ``[batch * heads, queries, keys]``, boolean or added; or None.
        padding: ``key_padding_mask``, ``[batch, keys]``, boolean or added; or None.
    """
    first, second = _of_scores(to, scores, heads), _of_padding(to, padding)
    if first is None or second is None:
        return first or second
    if first.boolean and second.boolean:
        return Mask(to.function(torch.logical_or, first.node, second.node), boolean=True)
    if not (first.boolean or second.boolean):
        return Mask(to.operation("add", first.node, second.node), boolean=False)
    added, shut = (second, first) if first.boolean else (first, second)
    return Mask(to.function(torch.masked_fill, added.node, shut.node, -math.inf), boolean=False)


def _of_scores(to: Writer, mask: Any, heads: int) -> Mask | None:
    spec = tensor_spec(mask) if isinstance(mask, fx.Node) else None
    if spec is None:
        return None
    node = mask if len(spec.shape) == 2 else to.operation("unflatten", mask, dim=0, sizes=(-1, heads))
    return Mask(node, spec.dtype == torch.bool)


def _of_padding(to: Writer, padding: Any) -> Mask | None:
    spec = tensor_spec(padding) if isinstance(padding, fx.Node) else None
    if spec is None:
        return None
    rows = to.operation("unsqueeze", to.operation("unsqueeze", padding, dim=1), dim=1)
    return Mask(rows, spec.dtype == torch.bool)


def mask_reason(scores: Any, padding: Any, query: fx.Node) -> str | None:
    """Say why masks cannot be merged into the attention of ``query``, or None."""
    spec = tensor_spec(query)
    for name, mask, ranks in (("mask of the scores", scores, (2, 3)), ("padding of the keys", padding, (2,))):
        if mask is None:
            continue
        found = tensor_spec(mask) if isinstance(mask, fx.Node) else None
        if (
            found is None
            or spec is None
            or found.dtype not in (torch.bool, spec.dtype)
            or len(found.shape) not in ranks
        ):
            dims = " or ".join(map(str, ranks))
            return f"its {name} is neither boolean nor of the dtype of the query, in {dims} dimensions"
    return None
