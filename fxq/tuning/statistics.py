"""What calibration saw of each value, kept so that many graphs are quantised from one pass over the data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxq.errors import CalibrationError, GraphError
from fxq.ir.identify import Identifier, get_module
from fxq.ir.metrics import tensors_in
from fxq.ir.rewriter import copy_graph_module
from fxq.ir.shapes import TensorSpec, run_recorded, tensor_spec
from fxq.quant.calibration import Calibration
from fxq.quant.calibrators import range_of
from fxq.quant.histogram import Histogram
from fxq.quant.observers import HistogramObserver, MinMaxObserver, MovingAverageObserver, Observer
from fxq.targets.placement import plan_placement

#: A value of a graph: its node's name and the epilogue of the layer that gives it.
Value = tuple[str, str]


def value_of(gm: fx.GraphModule, node: fx.Node) -> Value:
    """Return what ``node`` computes; a fused layer that lost its addition gives another value under the same name."""
    return node.name, repr(getattr(get_module(gm, node), "epilogue", ""))


class Statistics:
    """Observers of every value that int8 may read, filled by one run over the data for each kind of observer.

    Args:
        gm: the float graph that observers are inserted into, with recorded shapes.
        histograms: collect histograms, from which every calibrator takes its range, where ranges would do.

    Attributes:
        digest: of the data that ran through the model, whatever the order of the samples and the size of the batches.
        batches: how many of them there were.
    """

    def __init__(
        self, gm: fx.GraphModule, calibration: Calibration, histograms: bool = False, progress: bool | None = None
    ) -> None:
        self._gm = gm
        self._calibration = calibration
        self._progress = progress
        self._histograms = histograms
        self._seen: dict[str, dict[Value, Observer]] = {}
        self._ranges: dict[tuple[Any, ...], tuple[float, float]] = {}
        self.digest = ""
        self.batches = 0

    def observer(self, like: Observer, gm: fx.GraphModule, nodes: Iterable[fx.Node]) -> Observer:
        """Return an observer that has seen the values of ``nodes`` of ``gm``, with the range that ``like`` chooses.

        The data runs again only for values that the graph of these statistics does not have.

        Raises:
            CalibrationError: there is no data, or it does not fit or is not finite.
        """
        nodes = list(nodes)
        family = self._family(like)
        if family not in self._seen:
            self._seen[family] = self._collect(self._gm, _readable(self._gm), _maker(like, self._histograms))
        seen = self._seen[family]
        missing = [n for n in nodes if value_of(gm, n) not in seen]
        if missing:
            seen |= self._collect(gm, missing, _maker(like, self._histograms))
        return self._joined(like, family, [value_of(gm, n) for n in nodes])

    def _family(self, like: Observer) -> str:
        if isinstance(like, MovingAverageObserver):
            return f"moving average {like.momentum}"
        return "histogram" if self._histograms or isinstance(like, HistogramObserver) else "range"

    def _joined(self, like: Observer, family: str, values: list[Value]) -> Observer:
        found = [o for o in (self._seen[family][v] for v in values) if o.seen]
        out = MinMaxObserver(like.label)
        if not found:
            return out
        if isinstance(like, HistogramObserver):
            key = (like.calibrator, like.percentile, *values)
            if key not in self._ranges:
                self._ranges[key] = range_of(_merged(found), like.calibrator, like.percentile)
            low, high = self._ranges[key]
        else:
            low = min(float(o.minimum.min()) for o in found)
            high = max(float(o.maximum.max()) for o in found)
        out.minimum, out.maximum = (torch.tensor([end], dtype=torch.float64) for end in (low, high))
        return out

    def _collect(
        self, gm: fx.GraphModule, nodes: Iterable[fx.Node], make: Callable[[str], Observer]
    ) -> dict[Value, Observer]:
        observers = {node.name: make(f"`{node.name}`") for node in nodes}
        keys = {node.name: value_of(gm, node) for node in gm.graph.nodes if node.name in observers}
        watched = _Watched(copy_graph_module(gm), observers)
        for observer in observers.values():
            observer.active = True
        self.batches = self._calibration.run(watched, self._progress)
        for observer in observers.values():
            observer.active = False
        self.digest = self.digest or watched.digest()
        return {keys[name]: observer for name, observer in observers.items()}


class _Watched(nn.Module):
    """Runs a graph, shows its values to observers, and adds up digests of what it is given."""

    def __init__(self, gm: fx.GraphModule, observers: dict[str, Observer]) -> None:
        super().__init__()
        self._graph = gm
        self._observers = observers
        self._sum = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._sum += sum(map(_sample_digests, tensors_in((args, kwargs))))
        try:
            return run_recorded(self._graph, args, kwargs, self._show)
        except GraphError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, RuntimeError | CalibrationError) else RuntimeError(str(error)) from error

    def digest(self) -> str:
        return f"{self._sum % (1 << 64):016x}"

    def _show(self, node: fx.Node, value: Any) -> None:
        observer = self._observers.get(node.name)
        if observer is not None and isinstance(value, Tensor):
            observer(value)


def _sample_digests(batch: Tensor) -> int:
    """The sum of a digest of each sample: the same for any order of them."""
    samples = batch.detach().cpu().contiguous().unbind(0) if batch.dim() else [batch.detach().cpu()]
    total = 0
    for sample in samples:
        raw = sample.reshape(-1).view(torch.uint8).numpy().tobytes() if sample.numel() else b""
        label = f"{tuple(sample.shape)}{sample.dtype}".encode()
        total += int.from_bytes(hashlib.blake2b(raw, digest_size=8, key=label[:64]).digest(), "little")
    return total


def _readable(gm: fx.GraphModule) -> list[fx.Node]:
    """The floating point values that an int8 operation of ``gm`` reads or gives, under any placement."""
    int8 = plan_placement(gm).int8
    identify = Identifier(gm)
    near = {i for n in int8 for i in identify(n).nodes} | int8
    return [n for n in gm.graph.nodes if n in near and _is_floating(tensor_spec(n))]


def _is_floating(spec: TensorSpec | None) -> bool:
    return spec is not None and spec.dtype.is_floating_point


def _maker(like: Observer, histograms: bool) -> Callable[[str], Observer]:
    if isinstance(like, MovingAverageObserver):
        momentum = like.momentum
        return lambda label: MovingAverageObserver(label, momentum)
    return HistogramObserver if histograms or isinstance(like, HistogramObserver) else MinMaxObserver


def _merged(observers: list[Observer]) -> Histogram:
    whole = Histogram.empty()
    for observer in observers:
        assert isinstance(observer, HistogramObserver)
        whole = whole.merge(observer.histogram)
    return whole
