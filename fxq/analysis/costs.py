"""What a profile holds, and how it prints."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxq.analysis.layer_time import HEADINGS, LayerTime
from fxq.engine.peaks import Peaks
from fxq.ir.shapes import TensorSpec

CONVENTION = (
    "1 MAC = 1 multiply-add; FLOPs = 2 x MACs; convolution, linear and matrix products only; "
    "batch norm and activations not counted"
)
_WIDTH = 200


@dataclass(frozen=True)
class LayerCost:
    """What one operation costs.

    Attributes:
        name: the node's name in the graph.
        module_path: the module of the model that it belongs to, ``""`` for the root.
        kind: what it computes: an operation's name, or a module's class.
        inputs, outputs: shapes and dtypes of the tensors that it takes and gives.
        params: elements of its weights and biases; quantised ones count like the float ones that they stand for.
        macs: multiply-adds.
        activations: elements of its outputs; 0 for a view.
        access_bytes: bytes read and written: inputs, parameters, buffers, outputs, in their own dtypes; 0 for a view.
        access_elements: elements of inputs, outputs and weights, without biases and the vectors of a normalisation:
            H * W * (C_in + C_out) + C_in * C_out for a 1x1 convolution.
        bytes: size of its parameters and buffers.
    """

    name: str
    module_path: str
    kind: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    params: int
    macs: int
    activations: int
    access_bytes: int
    access_elements: int
    bytes: int

    @property
    def flops(self) -> int:
        """Floating point operations: 2 x MACs."""
        return 2 * self.macs

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each input tensor."""
        return tuple(s.shape for s in self.inputs)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the output, of the first one where there are several; ``()`` where there is none."""
        return self.outputs[0].shape if self.outputs else ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**plain, "inputs": _plain(self.inputs), "outputs": _plain(self.outputs), "flops": self.flops}


@dataclass(frozen=True)
class Profile:
    """What a model costs on one set of inputs.

    Attributes:
        layers: every operation that computes something, in order. A module that is called twice stands there twice.
        params: elements of the model's parameters; one that several layers share counts once.
        bytes: size of all parameters and buffers, each once.
        notes: what a reader should know: opaque modules, operations without a formula, parameters that nothing reads.
        times: what nodes took, by name, where that was measured. A layer that is computed together with another one
            has no time of its own.
        peaks: what the machine reaches at most, where that was measured.
    """

    layers: tuple[LayerCost, ...]
    params: int
    bytes: int
    notes: tuple[str, ...] = ()
    times: Mapping[str, LayerTime] = field(default_factory=dict)
    peaks: Peaks | None = None

    @property
    def seconds(self) -> float:
        """The sum of the measured times."""
        return sum(time.seconds for time in self.times.values())

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating point operations of all layers: 2 x MACs."""
        return 2 * self.macs

    @property
    def activations(self) -> int:
        """Output elements of all layers."""
        return sum(layer.activations for layer in self.layers)

    @property
    def access_bytes(self) -> int:
        """Bytes read and written by all layers."""
        return sum(layer.access_bytes for layer in self.layers)

    @property
    def access_elements(self) -> int:
        """Elements of inputs, weights and outputs of all layers."""
        return sum(layer.access_elements for layer in self.layers)

    def __getitem__(self, name: str) -> LayerCost:
        """Return the first layer with this module path or node name; KeyError where there is none."""
        for layer in self.layers:
            if name in (layer.module_path, layer.name):
                return layer
        raise KeyError(name)

    def totals(self) -> dict[str, int]:
        """Return the totals as plain numbers."""
        names = ("params", "macs", "flops", "activations", "access_bytes", "access_elements", "bytes")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, all counts as they are."""
        layers = [layer.to_dict() for layer in self.layers]
        plain = {"convention": CONVENTION, "total": self.totals(), "layers": layers, "notes": list(self.notes)}
        if self.peaks is None:
            return plain
        times = {name: time.to_dict() for name, time in self.times.items()}
        return {**plain, "times": times, "peaks": asdict(self.peaks), "seconds": self.seconds}

    def table(self) -> Table:
        """Return the layers and the total as a rich table."""
        table = Table(box=box.SIMPLE_HEAD, show_footer=True)
        total = ("total", "", "", *_counts(self))
        headings = (
            "layer",
            "kind",
            "output",
            "params",
            "MACs",
            "FLOPs",
            "activations",
            "elements moved",
            "bytes moved",
            "size",
        )
        for i, (heading, footer) in enumerate(zip(headings, total, strict=True)):
            table.add_column(heading, footer, justify="left" if i < 3 else "right", overflow="fold", no_wrap=i >= 2)
        for layer in self.layers:
            shapes = ", ".join(map(str, layer.outputs))
            table.add_row(_label(layer), layer.kind, Text(shapes), *_counts(layer))
        self._add_times(table)
        return table

    def _add_times(self, table: Table) -> None:
        """Add the columns of what was measured."""
        if self.peaks is None:
            return
        total = LayerTime.of(self.seconds, self.macs, self.access_bytes, self.peaks).cells()
        rows = [self.times[layer.name].cells() if layer.name in self.times else ("",) * 4 for layer in self.layers]
        for i, heading in enumerate(HEADINGS):
            table.add_column(heading, total[i], justify="right", no_wrap=True)
            table.columns[-1]._cells = [row[i] for row in rows]

    def __rich__(self) -> RenderableType:
        peaks = [] if self.peaks is None else [Text(f"peak of this machine: {self.peaks}")]
        return Group(Text(CONVENTION), *peaks, self.table(), *(Text(f"note: {note}") for note in self.notes))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def format_count(count: int) -> str:
    """Return ``count`` with three significant digits and a decimal unit: 1.81 G, 25.6 M, 512."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{_three_digits(count / size)} {unit}"
    return str(count)


def format_bytes(count: int) -> str:
    """Return ``count`` bytes with three significant digits and a decimal unit: 1 MB = 10^6 bytes."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count} B"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _counts(cost: LayerCost | Profile) -> Iterable[str]:
    counts = (cost.params, cost.macs, cost.flops, cost.activations, cost.access_elements)
    return *map(format_count, counts), format_bytes(cost.access_bytes), format_bytes(cost.bytes)


def _label(layer: LayerCost) -> str:
    if not layer.module_path or layer.name.replace("_", ".") == layer.module_path.replace("_", "."):
        return layer.module_path or layer.name
    return f"{layer.module_path} ({layer.name})"


def _plain(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    return [{"shape": list(s.shape), "dtype": str(s.dtype).removeprefix("torch.")} for s in specs]
