"""Which targets gain from attention in int8."""

from __future__ import annotations

from dataclasses import replace

from fxq.quant.recipe import Recipe


def with_attention(recipe: Recipe, target: str) -> Recipe:
    """Return ``recipe`` with attention in float on a target that has no kernel for it, unless it decides for itself.

    The engine has one, and the reference computes what that does. PyTorch's operators have none: what would be single
    operations of theirs takes several times as long as its float attention.

    Args:
        target: a resolved target.
    """
    if recipe.attention_in_float is not None:
        return recipe
    return replace(recipe, attention_in_float=target == "onednn")
