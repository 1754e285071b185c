"""Statistics of each channel's activations, over batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError, FxqError, InputError, nearest
from fxq.ir.identify import identify
from fxq.ir.interpreter import GraphInterpreter
from fxq.ir.ops import WEIGHTED
from fxq.ir.shapes import bind_placeholders
from fxq.pruning.evidence.chains import Chains
from fxq.quant.calibration import Calibration
from fxq.structure.group import Group
from fxq.tracing import ModelInputs, clone_inputs


@dataclass(frozen=True)
class ChannelStatistics:
    """What one layer's channels did, over all batches.

    Attributes:
        absolute: sum of absolute values, float64, shape (channels,).
        zeros: how many values were exactly zero, int64, shape (channels,).
        count: how many values each channel had.
        observed: names of the nodes whose values were counted: the activation behind the layer, where there is one.
    """

    absolute: Tensor
    zeros: Tensor
    count: int
    observed: tuple[str, ...]


def layers_of(groups: Iterable[Group]) -> tuple[str, ...]:
    """Module paths of the convolutions and linear layers that compute the channels of ``groups``."""
    paths = (m.path for group in groups for m in group.producers if m.kind in WEIGHTED)
    return tuple(dict.fromkeys(paths))


def collect_activations(
    model: fx.GraphModule, batches: Any, paths: Iterable[str], example: ModelInputs | None = None
) -> dict[str, ChannelStatistics]:
    """Run ``model`` in evaluation mode and count, for each layer, what its channels give after their activation.

    The activation is the one that follows in the graph, through norms, dropout and residual additions that nothing
    else reads; without one, what the layer's norm, else the layer itself, gives. Values are counted as they stream by:
    nothing but one number per channel is kept. The model is left as it was.

    Args:
        batches: calibration data in every form that `Calibration` takes, but a callable, or a `Calibration`.
        paths: module paths of convolutions and linear layers.
        example: an example input; says which elements of a batch are the model's.

    Raises:
        InputError: a path is no convolution or linear layer; ``batches`` is a callable.
        CalibrationError: there is no batch, or one does not fit the model, fails or is not finite.
    """
    chains = Chains(model)
    paths = tuple(dict.fromkeys(paths))
    known = chains.layers()
    for path in paths:
        if path not in known:
            raise InputError(
                f"`{path}` is no convolution or linear layer that the model runs", fix=nearest(path, known)
            )
    sums = {path: _Sums(chains.outputs(path), _channel_dim(model, path)) for path in paths}
    counter = _Counter(model, sums)
    count = 0
    with evaluation(model):
        for inputs in _stream(model, batches, example):
            counter.run_batch(inputs, count)
            count += 1
    if count == 0:
        raise CalibrationError(
            "the data is empty", why="it gave no batch",
            fix="a generator that was already read gives nothing: pass a list or a DataLoader",
        )  # fmt: skip
    return {path: entry.result() for path, entry in sums.items()}


def _stream(model: fx.GraphModule, batches: Any, example: ModelInputs | None) -> Iterator[ModelInputs]:
    data = batches if isinstance(batches, Calibration) else Calibration(batches, model, example)
    if data.first() is None:
        raise InputError("the data is a callable", why="the graph itself must run on the batches",
                         fix="give an iterable of batches")  # fmt: skip
    return iter(data)


def _channel_dim(model: fx.GraphModule, path: str) -> int:
    node = next(n for n in model.graph.nodes if n.op == "call_module" and n.target == path)
    return -1 if identify(node, model).kind == "linear" else 1


class _Sums:
    """One layer's sums so far."""

    def __init__(self, nodes: tuple[fx.Node, ...], dim: int) -> None:
        self.nodes = nodes
        self._dim = dim
        self._absolute: Tensor | None = None
        self._zeros: Tensor | None = None
        self._count = 0

    def add(self, value: Tensor) -> None:
        others = [d for d in range(value.dim()) if d != self._dim % value.dim()]
        absolute = value.abs().sum(others, dtype=torch.float64).cpu()
        zeros = (value == 0).sum(others).cpu()
        self._absolute = absolute if self._absolute is None else self._absolute + absolute
        self._zeros = zeros if self._zeros is None else self._zeros + zeros
        self._count += value.numel() // len(absolute)

    def result(self) -> ChannelStatistics:
        assert self._absolute is not None
        assert self._zeros is not None
        return ChannelStatistics(self._absolute, self._zeros, self._count, tuple(n.name for n in self.nodes))


class _Counter(GraphInterpreter):
    """Runs a graph without recording anything on it, and adds up what the observed nodes give."""

    def __init__(self, gm: fx.GraphModule, sums: Mapping[str, _Sums]) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self._gm = gm
        self._watched: dict[fx.Node, list[_Sums]] = {}
        for entry in sums.values():
            for node in entry.nodes:
                self._watched.setdefault(node, []).append(entry)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for entry in self._watched.get(n, ()):
            entry.add(value)
        return value

    def run_batch(self, inputs: ModelInputs, index: int) -> None:
        inputs = clone_inputs(inputs)
        try:
            self.run(*bind_placeholders(self._gm, inputs.args, dict(inputs.kwargs)))
        except FxqError:
            raise
        except (RuntimeError, TypeError, ValueError, LookupError, AssertionError) as error:
            raise CalibrationError(
                f"the model fails on batch {index}: {type(error).__name__}: {error}",
                fix="give batches that the model itself takes; fxq.inputs(loader, fn) picks the arguments",
            ) from error
