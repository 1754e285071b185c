"""What data can mend after channels are gone, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxq.errors import InputError
from fxq.pruning.reconstruct import kept_outputs, reconstruct
from fxq.pruning.reconstruction import Reconstruction, reconstruction_of
from fxq.pruning.reestimate import reestimate
from fxq.structure import Mask, Structure


@dataclass(frozen=True)
class Mending:
    """What is done to the pruned graph after each step, once it is checked.

    Attributes:
        data: batches.
        reconstruct: fit each layer to what it gave before the step, by least squares.
        reestimate: measure the statistics of batch norms anew.
        progress: show progress bars.
    """

    data: Any = None
    reconstruct: bool = False
    reestimate: bool = False
    progress: bool | None = None

    def check(self) -> None:
        """Raise InputError where data is needed and missing."""
        for option in ("reconstruct", "reestimate"):
            if getattr(self, option) and self.data is None:
                raise InputError(f"{option} needs data to run the model on", fix="give data=..., batches of inputs")

    def __call__(self, pruned: fx.GraphModule, structure: Structure, keep: Mapping[str, Mask]) -> fx.GraphModule:
        """Return the mended graph.

        Args:
            structure: of the graph that ``pruned`` was made from.
            keep: the units that stayed.
        """
        if self.reconstruct:
            kept = kept_outputs(structure.groups, keep)
            pruned = reconstruct(pruned, structure.gm, self.data, kept=kept, progress=self.progress)
        return reestimate(pruned, self.data, progress=self.progress) if self.reestimate else pruned

    def done(self, gm: fx.GraphModule) -> Reconstruction | None:
        """Return what the last reconstruction did to each layer; None where there was none."""
        return reconstruction_of(gm) if self.reconstruct else None
