"""Layers exchanged for ones that need no calibration, as far as a recipe's overrides let them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx, nn

from fxq.ir.rewriter import Rewriter
from fxq.quant.options import Options
from fxq.quant.overrides import Choices, Override, check_overrides

#: Why a layer, called by a node, is left as it is; None where it is exchanged.
Hindrance = Callable[[fx.Node, nn.Module], str | None]


def exchange_layers(
    rw: Rewriter, rule: str, candidates: Iterable[tuple[fx.Node, nn.Module]], overrides: Sequence[Override],
    hindrance: Hindrance, make: Callable[[nn.Module, str], nn.Module],
) -> None:  # fmt: skip
    """Put ``make(layer, path)`` in the place of each layer that nothing hinders; a layer under two paths stays one.

    A layer that an override keeps in float at one of its calls stays for all of them.

    Args:
        candidates: the calls of layers, in the graph's order, with the layers.

    Raises:
        InputError: an override matches nothing.
    """
    check_overrides(rw.gm, overrides)
    candidates = list(candidates)
    choices = Choices(rw.gm, Options(), overrides)
    kept = {layer: why for node, layer in candidates if (why := choices.why_float(node)) is not None}
    new: dict[nn.Module, nn.Module] = {}
    for node, layer in candidates:
        reason = kept.get(layer) or hindrance(node, layer)
        if reason is not None:
            rw.refuse(rule, node, reason)
            continue
        with rw.rule(rule, node):
            if layer not in new:
                new[layer] = make(layer, str(node.target))
            rw.exchange_module(str(node.target), new[layer])
