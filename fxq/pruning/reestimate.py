"""Batch-norm statistics measured anew: after pruning, the running averages describe channels that are gone."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError, InputError
from fxq.ir.ops import STATEFUL_MODULES
from fxq.ir.rewriter import Rewriter
from fxq.pruning.walking import Stream, Walk, as_calibration, calls_of, private_copy
from fxq.tracing import ModelInputs


def reestimate(
    model: fx.GraphModule, data: Any, layers: Iterable[str] | None = None, *, progress: bool | None = None
) -> fx.GraphModule:
    """Set the mean and variance of batch norms to those of the data.

    The data runs through the model once. The chosen norms normalise each batch by its own statistics, as in training;
    everything else is in evaluation mode. The mean over all batches is the mean of all elements, and the variance is
    the total one, pooled from within and between batches, ``sum n_b (v_b + (m_b - m)^2) / n``, in float64: not a
    momentum average, which the last batches dominate. (Wu, Johnson, "Rethinking 'Batch' in BatchNorm", 2021,
    arXiv:2105.07576, section 3.) As ``nn.BatchNorm`` does, the variance that is kept is the unbiased one, n / (n - 1)
    of that.

    Args:
        model: a graph; it stays as it is.
        data: a Calibration, an iterable of batches, or a callable that runs a model.
        layers: module paths of batch norms; None takes all that have running statistics.

    Returns:
        A new graph module, with batch norms of its own and everything else shared.

    Raises:
        InputError: a layer does not exist, or is no batch norm with running statistics.
        CalibrationError: there is no batch; one does not fit the model, or has a single value for a channel.
    """
    paths = _norms(model, layers)
    calibration = as_calibration(data, model)
    running = private_copy(model)
    sums = {path: ChannelSums() for path in paths}

    def see(inputs: ModelInputs) -> Any:
        return _NormalisingWalk(running, inputs, sums).finish()

    with evaluation(running):
        batches = calibration.run(Stream(running, see), progress)
    rewriter = Rewriter(model, "reestimate")
    for path in paths:
        norm = copy.deepcopy(model.get_submodule(path))
        sums[path].write(norm, batches)
        with rewriter.rule("reestimate", *calls_of(rewriter.gm, [path])[path]):
            rewriter.exchange_module(path, norm)
    return rewriter.finish()


class ChannelSums:
    """Mean and total variance of each channel over batches, float64 (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None  # sum of the squared distances from the mean

    def add(self, x: Tensor) -> None:
        """Add a batch of shape (batch, channels, ...)."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = values.shape[1], values.mean(1)
        squares = (values - mean.unsqueeze(1)).square().sum(1)
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total, away = self._count + count, mean - self._mean
        self._squares = self._squares + squares + away.square() * (self._count * count / total)
        self._mean = self._mean + away * (count / total)
        self._count = total

    @property
    def mean(self) -> Tensor:
        """Of shape (channels,)."""
        assert self._mean is not None
        return self._mean

    @property
    def variance(self) -> Tensor:
        """The unbiased one, of shape (channels,)."""
        assert self._squares is not None
        return self._squares / (self._count - 1)

    def write(self, norm: nn.Module, batches: int) -> None:
        """Put the statistics into ``norm``, in the dtype of its own."""
        any_norm: Any = norm
        any_norm.running_mean = self.mean.to(any_norm.running_mean)
        any_norm.running_var = self.variance.to(any_norm.running_var)
        if any_norm.num_batches_tracked is not None:
            any_norm.num_batches_tracked = torch.full_like(any_norm.num_batches_tracked, batches)


class _NormalisingWalk(Walk):
    """Runs a graph in which some batch norms use the statistics of the batch."""

    def __init__(self, gm: fx.GraphModule, inputs: ModelInputs, sums: dict[str, ChannelSums]) -> None:
        super().__init__(gm, inputs)
        self._sums = sums

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target not in self._sums:
            return super().call_module(target, args, kwargs)
        norm: Any = self.fetch_attr(target)
        x: Tensor = args[0] if args else kwargs["input"]
        if x.numel() == x.shape[1]:
            raise CalibrationError(
                f"`{target}` gets one value for each channel", why="a single value has no variance",
                fix="give larger batches",
            )  # fmt: skip
        self._sums[target].add(x)
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)


def _norms(model: fx.GraphModule, layers: Iterable[str] | None) -> list[str]:
    called = dict.fromkeys(str(n.target) for n in model.graph.nodes if n.op == "call_module")
    usable = [p for p in called if _has_statistics(model.get_submodule(p))]
    if layers is None:
        return usable
    named = list(calls_of(model, dict.fromkeys(layers)))
    for path in named:
        if path not in usable:
            kind = type(model.get_submodule(path)).__name__
            raise InputError(f"`{path}` is a {kind} without running statistics", fix="name a batch norm that has them")
    return named


def _has_statistics(module: nn.Module) -> bool:
    if STATEFUL_MODULES.get(type(module)) != "batch_norm":
        return False
    return module.running_mean is not None and module.running_var is not None
