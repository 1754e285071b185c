"""What everything that prunes channels looks like to the benchmark."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.peers.peer import FIX


@dataclass(frozen=True)
class Check:
    """What a tool says of its own result.

    Attributes:
        difference: from the dense model with the removed channels masked, in float64, relative to the largest element
            of each value.
        compared: how many values.
        note: why nothing was compared, or "".
    """

    difference: float | None
    compared: int = 0
    note: str = ""


@dataclass(frozen=True)
class Peer:
    """One tool.

    Attributes:
        prune: removes the fraction of channels from the model that it is given, which is a copy, and returns what runs.
        call: what is called, in words, for the report.
        needs: packages.
        check: prunes once more and compares with the masked dense model; None where the tool cannot.
    """

    name: str
    title: str
    prune: Callable[[nn.Module, Tensor, float], nn.Module]
    call: str
    needs: tuple[str, ...] = ()
    check: Callable[[nn.Module, Tensor, float], Check] | None = None

    def available(self) -> str | None:
        """Return None when the packages that it needs are installed, else the reason why it cannot run."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"not installed: {', '.join(missing)}; {FIX}" if missing else None
