"""Whether a target's instructions saturate products of u8 activations and 8-bit weights, so that 7 bits are needed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from fxq.nn import onednn_unavailable_reason
from fxq.quant.recipe import Recipe

#: CPU flags of instructions that add four u8 x s8 products in 32 bits.
_EXACT = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
_WHY = "without VNNI instructions, pairs of u8 x s8 products are added in 16 bits, which 8-bit weights overflow"


def why_reduced(target: str, flags: Collection[str] | None = None) -> str | None:
    """Return why ``target`` needs weights of 7 bits, or None where 8 bits are exact.

    Only the onednn operators use such instructions: the reference computes in float, and the engine splits what would
    overflow.

    Args:
        target: a resolved target.
        flags: of a CPU, as /proc/cpuinfo names them; None asks this machine's operators for sums that overflow.
    """
    if target != "onednn":
        return None
    saturates = bool(onednn_unavailable_reason()) if flags is None else not _EXACT.intersection(flags)
    return _WHY if saturates else None


def guarded(recipe: Recipe, target: str, flags: Collection[str] | None = None) -> Recipe:
    """Return ``recipe`` with 7-bit weights where ``target`` needs them, unless it decides for itself."""
    if recipe.reduce_range is not None:
        return recipe
    return replace(recipe, reduce_range=why_reduced(target, flags) is not None)
