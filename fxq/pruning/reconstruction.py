"""What a reconstruction did: the error of each layer before and after."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from torch import fx

from fxq.errors import InputError

_KEY = "fxq_reconstruction"
_WIDTH = 140


@dataclass(frozen=True)
class LayerFit:
    """One layer; errors are ||Y - Y'|| / ||Y|| over the sampled outputs, Y the original's.

    Attributes:
        path: its module path.
        before, after: with the weights that it had and has, on all rows.
        held_out: both on rows of images that were not fitted on, where the ridge was chosen by them.
        ridge: the penalty, None where the weights stay as they were.
        rows: sampled outputs of the layer.
        columns: inputs that each of its outputs multiplies.
        note: why it stayed as it was, "" where it did not.
    """

    path: str
    before: float | None = None
    after: float | None = None
    held_out: tuple[float, float] | None = None
    ridge: float | None = None
    rows: int = 0
    columns: int = 0
    note: str = ""


@dataclass(frozen=True)
class Reconstruction:
    """The layers in the order of execution; print it."""

    layers: tuple[LayerFit, ...]

    def __getitem__(self, path: str) -> LayerFit:
        """Return the layer at this module path; KeyError where there is none."""
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def table(self) -> Table:
        """The layers as a rich table."""
        table = Table(box=box.SIMPLE_HEAD, title="Least-squares reconstruction: error of each layer's outputs",
                      title_justify="left")  # fmt: skip
        for name in ("layer", "before", "after", "held out", "ridge", "rows", "columns", "note"):
            table.add_column(name, justify="left" if name in ("layer", "note") else "right", overflow="fold")
        for layer in self.layers:
            held_out = "" if layer.held_out is None else f"{layer.held_out[0]:.3%} -> {layer.held_out[1]:.3%}"
            ridge = "" if layer.ridge is None else f"{layer.ridge:g}"
            table.add_row(layer.path, _percent(layer.before), _percent(layer.after), held_out, ridge,
                          str(layer.rows or ""), str(layer.columns or ""), layer.note)  # fmt: skip
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def reconstruction_of(gm: fx.GraphModule) -> Reconstruction:
    """Return what ``reconstruct`` did to this module.

    Raises:
        InputError: it did not make this module.
    """
    found = gm.meta.get(_KEY)
    if not isinstance(found, Reconstruction):
        raise InputError("this module was not reconstructed", fix="pass what fxq.pruning.reconstruct returned")
    return found


def attach_reconstruction(gm: fx.GraphModule, found: Reconstruction) -> None:
    """Note on ``gm`` what was done to it."""
    gm.meta[_KEY] = found


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:.3%}"
