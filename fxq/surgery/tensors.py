"""Parameters and buffers of which only some channels stay."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fxq.structure.analysis import Slot
from fxq.structure.group import Indices, Mask


class Positions:
    """Which positions of each dimension stay; remembered, as most dimensions are those of several tensors.

    Args:
        kept: for each identity, whether it stays.
    """

    def __init__(self, kept: Mask) -> None:
        self.kept = kept
        self._found: dict[int, tuple[Indices, Tensor | None]] = {}

    def __call__(self, ids: Indices | None) -> Tensor | None:
        """The positions of ``ids`` that stay, int64; None where all do, or ``ids`` are never pruned."""
        if ids is None:
            return None
        if id(ids) not in self._found:  # and ids are held, so that no other array gets their identity
            stays = self.kept[ids]
            self._found[id(ids)] = ids, None if stays.all() else torch.from_numpy(np.flatnonzero(stays))
        return self._found[id(ids)][1]


def shrink_tensor(tensor: Tensor, slot: Slot, positions: Positions) -> Tensor:
    """Return a copy of ``tensor`` with the positions whose identities stay; a parameter stays a parameter.

    The second dimension of a grouped convolution's weight has, for each filter, the channels of the filter's group:
    each group keeps its own.
    """
    data = tensor.detach()
    for dim, ids in enumerate(slot.axes):
        found = None if dim == 1 and slot.parts > 1 else positions(ids)
        if found is not None:
            data = data.index_select(dim, found.to(data.device))
    if slot.parts > 1 and slot.axes[1] is not None:
        data = _shrink_parts(data, torch.from_numpy(positions.kept[slot.axes[1]]).reshape(slot.parts, -1))
    data = data.clone() if data.data_ptr() == tensor.data_ptr() else data.contiguous()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _shrink_parts(data: Tensor, stays: Tensor) -> Tensor:
    """``data``: (filters, channels of a group, *kernel); ``stays``: (groups, channels of a group)."""
    if bool(stays.all()):
        return data
    chunks = data.chunk(len(stays))
    picked = [chunk[:, mask.to(data.device)] for chunk, mask in zip(chunks, stays, strict=True)]
    return torch.cat(picked)
