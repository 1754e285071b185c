"""Layers of whose results the direction alone counts: there a small shift of what is zero is no small error."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx

from fxq.ir.ops import MOVES
from fxq.ir.rewriter import Rewriter
from fxq.quant.observers import Observer


def normalised_reason(node: fx.Node, rw: Rewriter) -> str | None:
    """Say by which call what ``node`` gives is divided by its own norm, also behind moves of values, or None.

    ``normalize`` leaves a row of zeros as it is (the keys of padding, in attention by cosines) and makes a direction of
    length one of any other, however small.
    """
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop().users:
            call = rw.identify(user)
            if call.kind is F.normalize:
                return f"`{user.name}` divides its result by its norm, which makes a direction of any shift of zeros"
            if user not in seen and (call.kind in MOVES or isinstance(call.module, Observer)):
                seen.add(user)
                queue.append(user)
    return None
