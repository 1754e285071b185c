"""Parameters and buffers of which only some channels stay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxq.structure.analysis import Slot
from fxq.structure.group import Mask


def shrink_tensor(tensor: Tensor, slot: Slot, kept: Mask) -> Tensor:
    """Return a copy of ``tensor`` with the positions whose identities stay; a parameter stays a parameter.

    The second dimension of a grouped convolution's weight has, for each filter, the channels of the filter's group:
    each group keeps its own.
    """
    data = tensor.detach()
    for dim, ids in enumerate(slot.axes):
        if ids is None or (dim == 1 and slot.parts > 1):
            continue
        stays = torch.from_numpy(kept[ids])
        if not bool(stays.all()):
            data = data.index_select(dim, stays.nonzero().flatten().to(data.device))
    if slot.parts > 1 and slot.axes[1] is not None:
        data = _shrink_parts(data, torch.from_numpy(kept[slot.axes[1]]).reshape(slot.parts, -1))
    data = data.clone() if data.data_ptr() == tensor.data_ptr() else data.contiguous()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _shrink_parts(data: Tensor, stays: Tensor) -> Tensor:
    """``data``: (filters, channels of a group, *kernel); ``stays``: (groups, channels of a group)."""
    if bool(stays.all()):
        return data
    chunks = data.chunk(len(stays))
    picked = [chunk[:, mask.to(data.device)] for chunk, mask in zip(chunks, stays, strict=True)]
    return torch.cat(picked)
