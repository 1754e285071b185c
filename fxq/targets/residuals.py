"""Residual additions inside layers that are better done in float: the residual stream of a transformer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxq.ir.identify import OpCall


def float_residuals(int8: set[fx.Node], calls: Mapping[fx.Node, OpCall]) -> list[fx.Node]:
    """Return the fused layers whose sum nothing reads in int8, and whose residual is float.

    To add the residual inside such a layer it would have to be quantised for nothing else: an operation more, and an
    error that adds up from block to block.
    """
    adding = {n for n in calls if n in int8 and _adds(calls[n])}
    while True:
        split = [n for n in adding if _stays_float(n, int8, calls, adding)]
        if not split:
            return [n for n in calls if n in int8 and _adds(calls[n]) and n not in adding]
        adding.difference_update(split)


def _adds(call: OpCall) -> bool:
    epilogue = getattr(call.module, "epilogue", None)
    return epilogue is not None and epilogue.add and len(call.nodes) == 2


def _stays_float(node: fx.Node, int8: set[fx.Node], calls: Mapping[fx.Node, OpCall], adding: set[fx.Node]) -> bool:
    residual = calls[node].nodes[1]
    if any(_reads_codes(u, node, int8, calls, adding) for u in node.users):
        return False
    if calls[node].nodes[0] is residual and residual in int8:
        return False
    others = [u for u in residual.users if u is not node]
    return residual not in int8 or not any(_reads_codes(u, residual, int8, calls, adding) for u in others)


def _reads_codes(
    user: fx.Node, value: fx.Node, int8: set[fx.Node], calls: Mapping[fx.Node, OpCall], adding: set[fx.Node]
) -> bool:
    """Whether ``user`` reads ``value`` in int8: a layer that leaves the addition to float reads its input alone."""
    if user not in int8:
        return False
    if _adds(calls[user]) and user not in adding:
        return calls[user].nodes[0] is value
    return True
