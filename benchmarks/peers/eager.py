"""PyTorch eager, float32: what every other row is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, state_dict_bytes


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    return Prepared(model, state_dict_bytes(model))


PEER = Peer("eager", "PyTorch eager f32", _prepare)
