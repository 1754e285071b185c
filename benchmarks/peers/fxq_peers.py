"""fxq itself, behind the same interface as its peers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor, nn

import fxq
from benchmarks.peers.peer import Peer, Prepared, state_dict_bytes


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor], *, recipe: str, target: str) -> Prepared:
    data = list(calibration) if recipe == "int8" else None
    compiled = fxq.compile(model, example, calibration=data, recipe=recipe, target=target, progress=False)
    return Prepared(compiled, state_dict_bytes(compiled))


def _peer(name: str, recipe: str, target: str) -> Peer:
    prepare = functools.partial(_prepare, recipe=recipe, target=target)
    return Peer(name, f"fxq {recipe} ({target})", prepare)


FLOAT = _peer("fxq-float", "float", "auto")
NATIVE = _peer("fxq-native", "int8", "native")
ONEDNN = _peer("fxq-onednn", "int8", "onednn")
REFERENCE = _peer("fxq-reference", "int8", "reference")
AUTO = _peer("fxq", "int8", "auto")
