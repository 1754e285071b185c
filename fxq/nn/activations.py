"""Activation functions in a graph, as the epilogue that applies them."""

from __future__ import annotations

from torch import fx

from fxq.ir.identify import OpCall
from fxq.ir.ops import FUSABLE_ACTIVATIONS, SPECS, is_finite_number
from fxq.nn.epilogue import Epilogue

#: The kinds of operation that can be an epilogue's activation; a clamp between two numbers is a hardtanh.
ACTIVATION_KINDS = (*FUSABLE_ACTIVATIONS, "clamp")


def activation_of(call: OpCall) -> Epilogue | None:
    """Return the epilogue that applies the same activation as ``call``, or None where it is none."""
    if call.kind not in ACTIVATION_KINDS or any(isinstance(v, fx.Node) for v in call.attrs.values()):
        return None
    params = tuple(call.attrs[name] for name, _ in SPECS[str(call.kind)].attrs)
    if call.kind not in ("clamp", "hardtanh"):
        return Epilogue(str(call.kind), params)
    ordered = all(map(is_finite_number, params)) and params[0] <= params[1]
    return Epilogue("hardtanh", params) if ordered else None
