"""fxq itself, with its defaults."""

from __future__ import annotations

from torch import Tensor, nn

import fxq
from benchmarks.pruning_peers.peer import Check, Peer
from fxq.pruning.report import PruneReport


def _prune(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
    return fxq.prune(model, example, ratio=ratio, check=False, progress=False)


def _check(model: nn.Module, example: Tensor, ratio: float) -> Check:
    pruned = fxq.prune(model, example, ratio=ratio, progress=False)
    report = next(section for section in fxq.report(pruned).sections if isinstance(section, PruneReport))
    if not report.checks:
        return Check(None, note="; ".join(report.notes) or "not checked")
    worst = max(report.checks, key=lambda check: check.difference)
    return Check(worst.difference, worst.compared)


PEER = Peer(
    "fxq", "fxq", _prune, "fxq.prune(model, example, ratio=RATIO), all else by default; check=False while it is timed",
    check=_check,
)  # fmt: skip
