"""Parameters that passes ask about and make."""

from __future__ import annotations

import torch
from torch import fx, nn


def shared_tensors(gm: fx.GraphModule, module: nn.Module) -> bool:
    """Whether another module or attribute of ``gm`` holds one of the parameters of ``module`` (tied weights)."""
    mine = {id(p) for p in module.parameters()}
    owned = set(map(id, module.modules()))
    # the dicts themselves: parameters() and buffers() of every module take ten times as long
    return any(
        id(tensor) in mine
        for other in gm.modules()
        if id(other) not in owned
        for tensor in (*other._parameters.values(), *other._buffers.values())
    )


def clone_parameter(tensor: torch.Tensor) -> nn.Parameter:
    """Return a frozen parameter with the values of ``tensor``: the weights of a rewritten layer do not train."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
