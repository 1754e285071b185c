"""`fxq.compare`: the error that compiling added, at each layer and at the output."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, fx, nn

from fxq.analysis.attribution import Added, Attribution
from fxq.analysis.error_sums import ErrorSums
from fxq.analysis.matching import Matching, match_nodes
from fxq.analysis.running import evaluation, isolate
from fxq.engine.dissolve import dissolve
from fxq.errors import InputError
from fxq.ir.identify import get_module, identify
from fxq.ir.metrics import Distance, tensors_in
from fxq.ir.provenance import ensure_ids, node_info
from fxq.ir.shapes import run_recorded
from fxq.ir.snapshot import kind_text
from fxq.nn import Quantize, dequantize, quantize
from fxq.quant.calibration import Calibration
from fxq.quant.qparams import QParams
from fxq.tracing import ModelInputs, clone_inputs, trace

_WIDTH = 160


@dataclass(frozen=True)
class LayerError:
    """How far one value of the compiled graph lies from the reference, over all batches.

    Attributes:
        name: the node of the compiled graph.
        module_path: the module of the source model that it belongs to.
        kind: what computes it.
        reference: the node of the reference graph whose value it stands for.
        sqnr_db: 10 log10(sum(reference^2) / sum((reference - value)^2)); ``inf`` where they are equal.
        cosine: cosine of the angle between the two, as flat vectors.
        max_abs: largest absolute difference.
        scale: largest absolute value of the reference.
        added_db: SQNR of the model's output if it had only the error that this operation adds; None where nobody asked.
        share: of the output's error; see :mod:`fxq.analysis.attribution`. None where nobody asked.
    """

    name: str
    module_path: str
    kind: str
    reference: str
    sqnr_db: float
    cosine: float
    max_abs: float
    scale: float
    added_db: float | None = None
    share: float | None = None


@dataclass(frozen=True)
class Uncompared:
    """An operation of the compiled graph that could not be compared, and why."""

    name: str
    module_path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        output: the error of the output, all its tensors together.
        layers: the error of each operation with a counterpart, the worst first: what adds most to the output's error
            where that was asked for, else what has the lowest SQNR.
        uncompared: operations without one.
        batches: how many batches ran.
        unattributed: the share of the output's error that no operation bears; None where nobody asked.
    """

    output: LayerError
    layers: tuple[LayerError, ...]
    uncompared: tuple[Uncompared, ...]
    batches: int
    unattributed: float | None = None

    def __getitem__(self, name: str) -> LayerError:
        """Return the layer with this module path or node name; KeyError where there is none."""
        for layer in self.layers:
            if name in (layer.module_path, layer.name):
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; infinite ratios are ``None``, next to a ``max_abs`` of 0."""
        return {
            "batches": self.batches,
            "unattributed": self.unattributed,
            "output": _plain(self.output),
            "layers": [_plain(layer) for layer in self.layers],
            "uncompared": [asdict(entry) for entry in self.uncompared],
        }

    def table(self) -> Table:
        """Return the layers, the worst first, and the output as a rich table."""
        batches = f"{self.batches} batch" + ("es" if self.batches != 1 else "")
        table = Table(box=box.SIMPLE_HEAD, title=f"Error against the reference over {batches}, worst layers first",
                      title_justify="left", show_footer=True)  # fmt: skip
        attributed = self.unattributed is not None
        total = ["output", "", "", *_numbers(self.output)]
        headings = ["layer", "kind", "reference", "SQNR", "cosine", "max error", "max value"]
        if attributed:
            headings += ["adds", "share of the output's error"]
            total += ["", f"{self.unattributed:.1%} elsewhere"]
        for i, (heading, footer) in enumerate(zip(headings, total, strict=True)):
            table.add_column(heading, footer, justify="left" if i < 3 else "right", overflow="fold", no_wrap=i >= 3)
        for layer in self.layers:
            added = [f"{layer.added_db:.1f} dB", f"{layer.share:.1%}"] if layer.added_db is not None else []
            table.add_row(layer.module_path or layer.name, layer.kind, layer.reference, *_numbers(layer), *added)
        return table

    def __rich__(self) -> RenderableType:
        lines = [Text(f"not compared: {_label(e)} ({e.kind}): {e.reason}") for e in self.uncompared]
        return Group(self.table(), *lines)

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def compare(reference: nn.Module, gm: nn.Module, data: Any, *, attribute: bool = False) -> Comparison:
    """Run both models on the same data and measure how far ``gm`` lies from ``reference``, layer by layer.

    Each operation of ``gm`` is compared with the value of ``reference`` that it stands for: a convolution into which a
    ReLU was fused with the ReLU's. int8 values are dequantised; a float value that is quantised next is compared as its
    readers see it, after quantisation. Both run in evaluation mode and stay as they are. Sums run over all batches, and
    activations of one batch alone are in memory.

    Args:
        reference: the float model, or a graph of it.
        gm: a compiled graph of any stage, or another module of the same structure.
        data: a batch (a tensor, a tuple of arguments, a dict of keyword arguments) or an iterable of batches, such as
            a list or a DataLoader. What a tuple has beyond the model's arguments (labels) is left out.
        attribute: find out how much each operation adds to the output's error, too, by putting the values of ``gm``
            into the reference one after another (:mod:`fxq.analysis.attribution`). With n operations that takes about
            n / 2 more runs of the reference, and all activations of a batch are in memory.

    Raises:
        InputError: the outputs of the two have different structures or shapes, or ``data`` is a callable.
        CalibrationError: there is no batch, or one does not fit the model or is not finite.
        GraphError: a model fails on a batch.
    """
    batches = Calibration(_as_batches(data), reference, ModelInputs((None,) * _arguments(gm)))
    first = batches.first()
    if first is None:
        raise InputError(
            "the data to compare on is a callable", fix="give batches: two models must run on the same ones"
        )
    pair = _Pair(_prepared(reference, first), _prepared(gm, first), attribute)
    for inputs in batches:
        pair.add(inputs)
    return pair.result()


def _as_batches(data: Any) -> Any:
    return [data] if isinstance(data, Tensor | dict | tuple | ModelInputs) else data


def _arguments(gm: nn.Module) -> int:
    """How many positional arguments a graph reads; 0 where the signature of the reference has to tell."""
    if not isinstance(gm, fx.GraphModule):
        return 0
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    if any(str(n.target).startswith("*") for n in placeholders):
        return 0
    return max((i for i, n in enumerate(placeholders, start=1) if n.users), default=0)


def _prepared(model: nn.Module, inputs: ModelInputs) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        model = dissolve(model)  # layer by layer: what the native engine takes over, by the modules that define it
    gm = isolate(trace(model, inputs))
    ensure_ids(gm)
    return gm


class _Pair:
    """Two graphs, and the error of each pair of values so far."""

    def __init__(self, reference: fx.GraphModule, compiled: fx.GraphModule, attribute: bool) -> None:
        self._reference = reference
        self._compiled = compiled
        self._matching: Matching = match_nodes(reference, compiled)
        self._expected_codes, self._codes = _Codes(reference), _Codes(compiled)
        self._quantised = {n.args[0]: n for n in reversed(compiled.graph.nodes) if _quantises(n, compiled)}
        self._sums: dict[fx.Node, ErrorSums] = {}
        self._uncompared: dict[fx.Node, str] = {}
        self._output = ErrorSums()
        self._batches = 0
        self._values: dict[fx.Node, list[Tensor]] = {}
        self._actual: dict[fx.Node, Tensor] = {}
        order = [(n, self._matching.pairs[n]) for n in compiled.graph.nodes if n in self._matching.pairs]
        self._attribution = Attribution(reference, order) if attribute else None

    def add(self, inputs: ModelInputs) -> None:
        """Run both graphs on a batch."""
        wanted = set(self._matching.pairs.values())

        def keep(node: fx.Node, value: Any) -> None:
            if node in wanted:  # cloned, as a later operation may write into it
                self._values[node] = [t.clone() for t in self._expected_codes.real(node, value)]

        expected = _run(self._reference, inputs, keep)
        actual = _run(self._compiled, inputs, self._look)
        self._values.clear()
        self._batches += 1
        try:
            self._output.add(expected, actual)
        except ValueError as error:
            raise InputError(
                f"the outputs of the two models differ in structure: {error}",
                fix="give the model that the graph was compiled from as the reference",
            ) from error
        if self._attribution is not None:
            self._attribution.add(inputs, self._actual, actual)
            self._actual.clear()

    def result(self) -> Comparison:
        """Return the errors over all batches added."""
        added = {} if self._attribution is None else self._attribution.added()
        compared = [(node, sums) for node, sums in self._sums.items() if node not in self._uncompared]
        layers = [self._error(node, sums, added.get(node)) for node, sums in compared]
        output = _error("output", "", "output", "output", self._output.distance())
        uncompared = tuple(
            Uncompared(n.name, node_info(n).module_path, self._kind(n), self._uncompared[n])
            for n in self._compiled.graph.nodes
            if n in self._uncompared
        )
        rest = None if self._attribution is None else self._attribution.rest().share
        worst = tuple(sorted(layers, key=lambda e: (math.inf if e.added_db is None else e.added_db, e.sqnr_db)))
        return Comparison(output, worst, uncompared, self._batches, rest)

    def _look(self, node: fx.Node, value: Any) -> None:
        parameters = _quantises(node, self._compiled)
        if parameters is not None:
            (source,) = node.all_input_nodes
            if self._quantised[source] is node:
                self._compare(source, dequantize(value, parameters.scale, parameters.zero_point))
        elif node not in self._quantised:
            self._compare(node, value)

    def _compare(self, node: fx.Node, value: Any) -> None:
        tensors = self._codes.real(node, value)
        if not tensors or node.op == "placeholder":
            return
        if node in self._matching.unmatched:
            self._uncompared[node] = self._matching.unmatched[node]
        if node not in self._matching.pairs:
            return
        expected = self._values.pop(self._matching.pairs[node])
        if self._attribution is not None and len(tensors) == 1:
            self._actual[node] = tensors[0].detach().clone()  # a later operation may write into it
        try:
            self._sums.setdefault(node, ErrorSums()).add(expected, tensors)
        except ValueError as error:
            self._uncompared[node] = f"the reference and the graph have {error} here"

    def _error(self, node: fx.Node, sums: ErrorSums, added: Added | None) -> LayerError:
        reference = self._matching.pairs[node].name
        found = _error(node.name, node_info(node).module_path, self._kind(node), reference, sums.distance())
        return found if added is None else replace(found, added_db=added.db, share=added.share)

    def _kind(self, node: fx.Node) -> str:
        return kind_text(identify(node, self._compiled).kind)


def _quantises(node: fx.Node, gm: fx.GraphModule) -> QParams | None:
    """With what a node quantises, as a function or as a module; None where it does something else."""
    if node.target is quantize:
        return _literals(node)
    module = get_module(gm, node)
    return module.output if isinstance(module, Quantize) else None


def _literals(quantise: fx.Node) -> QParams:
    return QParams(float(quantise.args[1]), int(quantise.args[2]))  # type: ignore[arg-type]


def _run(gm: fx.GraphModule, inputs: ModelInputs, watch: Any) -> Any:
    inputs = clone_inputs(inputs)
    with evaluation(gm):
        return run_recorded(gm, inputs.args, dict(inputs.kwargs), watch)


class _Codes:
    """Knows the scale and zero point of every value of a graph that may be codes."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._found: dict[fx.Node, QParams] = {}
        for node in gm.graph.nodes:
            module = get_module(gm, node)
            output = getattr(getattr(module, "quantisation", module), "output", None)
            if node.target is quantize:
                self._found[node] = _literals(node)
            elif isinstance(output, QParams):
                self._found[node] = output
            elif node.all_input_nodes and node.all_input_nodes[0] in self._found:  # moves the codes of its input
                self._found[node] = self._found[node.all_input_nodes[0]]

    def real(self, node: fx.Node, value: Any) -> list[Tensor]:
        """Return the floating point tensors in the value of ``node``, codes dequantised."""
        parameters = self._found.get(node)
        if isinstance(value, Tensor) and value.dtype is torch.uint8 and parameters is not None:
            value = dequantize(value, parameters.scale, parameters.zero_point)
        return [t for t in tensors_in(value) if t.is_floating_point()]


def _error(name: str, path: str, kind: str, reference: str, d: Distance) -> LayerError:
    return LayerError(name, path, kind, reference, d.sqnr_db, d.cosine, d.max_abs, d.scale)


def _plain(error: LayerError) -> dict[str, Any]:
    data = asdict(error)
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()}


def _numbers(error: LayerError) -> tuple[str, ...]:
    return f"{error.sqnr_db:.1f} dB", f"{error.cosine:.6f}", f"{error.max_abs:.3g}", f"{error.scale:.3g}"


def _label(entry: Uncompared) -> str:
    return entry.module_path or entry.name
