"""Powers with a number for an exponent, which the table of operations lacks."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch

from fxq.ir.identify import OpCall
from fxq.ir.ops import Kind

POWERS: Final[tuple[Kind, ...]] = (torch.pow, operator.pow, "method:pow")


def exponent_of(power: OpCall) -> Any:
    """Return the exponent of a call of one of ``POWERS``: a number, or the node that computes it."""
    return power.node.args[1] if len(power.node.args) > 1 else power.node.kwargs.get("exponent")
