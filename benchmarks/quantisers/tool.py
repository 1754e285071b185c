"""What every quantiser looks like to the fidelity benchmark."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from benchmarks.networks import TrainedNetwork
from benchmarks.peers.peer import FIX


@dataclass(frozen=True)
class Coverage:
    """How much of a network computes on int8: what a tool leaves in float adds no error, and no speed.

    Attributes:
        layers, of: convolutions, linear and recurrent layers and products of matrices with int8 operands, of all.
        others: other operations with int8 operands: additions, activations, poolings.
    """

    layers: int
    of: int
    others: int

    def __str__(self) -> str:
        return f"{self.layers}/{self.of} + {self.others}"


@dataclass(frozen=True)
class Quantised:
    """An int8 network: ``call`` takes a batch of the example's shape and returns its logits."""

    call: Callable[[Tensor], Tensor]
    coverage: Coverage


class Quantise(Protocol):
    """Quantise a copy of a trained network for batches of ``example``'s shape, calibrated on ``calibration``."""

    def __call__(self, network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor]) -> Quantised: ...


@dataclass(frozen=True)
class Tool:
    """One way of quantising; whatever it raises is shown in the table."""

    name: str
    title: str
    quantise: Quantise
    needs: tuple[str, ...] = ()

    def available(self) -> str | None:
        """Return None when the packages that it needs are installed, else the reason why it cannot run."""
        missing = [package for package in self.needs if importlib.util.find_spec(package) is None]
        return f"not installed: {', '.join(missing)}; {FIX}" if missing else None
