"""fxq itself, behind the same interface as its peers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, state_dict_bytes


@dataclass(frozen=True)
class FxqPeer(Peer):
    """fxq with one recipe on one target."""

    def available(self) -> str | None:
        """Return a reason while `fxq.compile` cannot be imported."""
        try:
            from fxq import compile as _  # noqa: F401
        except ImportError as error:
            return f"fxq.compile cannot be imported: {error}"
        return None


def _prepare(model: nn.Module, example: Tensor, calibration: Sequence[Tensor], *, recipe: str, target: str) -> Prepared:
    import fxq

    data = list(calibration) if recipe == "int8" else None
    compiled = fxq.compile(model, example, calibration=data, recipe=recipe, target=target)
    return Prepared(compiled, state_dict_bytes(compiled))


def _peer(name: str, recipe: str, target: str) -> FxqPeer:
    prepare = functools.partial(_prepare, recipe=recipe, target=target)
    return FxqPeer(name, f"fxq {recipe} ({target})", prepare)


FLOAT = _peer("fxq-float", "float", "auto")
ONEDNN = _peer("fxq-onednn", "int8", "onednn")
REFERENCE = _peer("fxq-reference", "int8", "reference")
AUTO = _peer("fxq", "int8", "auto")
