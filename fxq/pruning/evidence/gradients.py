"""Gradients of a loss with respect to every parameter, over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import length_hint
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.analysis.running import evaluation
from fxq.errors import CalibrationError, InputError
from fxq.progress import track
from fxq.structure.group import Member, rows
from fxq.tracing import ModelInputs, clone_inputs

Loss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class Gradients:
    """What the loss of each batch says about every parameter.

    Attributes:
        mean: the gradient, averaged over batches, by the tensor's name; in the parameter's shape and dtype.
        square: the squared gradient of each batch, averaged over batches.
        contributions: for each batch the sum of parameter times gradient over everything but one dimension, float64,
            shape (batches, positions); by name, dimension, and number of convolution groups (1 but for the second
            dimension of grouped convolutions). Its entry is the batch's gradient with respect to a gate that
            multiplies the slice.
        batches: how many batches.
    """

    mean: Mapping[str, Tensor]
    square: Mapping[str, Tensor]
    contributions: Mapping[tuple[str, int, int], Tensor]
    batches: int


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The mean cross-entropy of a batch ``(inputs, labels)``; labels are class indices or class probabilities.

    Raises:
        InputError: the batch is not a pair, or the model does not return one tensor.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise InputError(
            f"a batch is {_describe(batch)}", why="the default loss is cross-entropy on pairs (inputs, labels)",
            fix="give such pairs, or your own loss: loss(model, batch) -> scalar tensor",
        )  # fmt: skip
    inputs = clone_inputs(ModelInputs((batch[0],)))
    scores = model(*inputs.args)
    if not isinstance(scores, Tensor):
        raise InputError(
            f"the model returns a {type(scores).__name__}", why="the default loss is cross-entropy on one tensor",
            fix="give your own loss: loss(model, batch) -> scalar tensor",
        )  # fmt: skip
    return F.cross_entropy(scores, batch[1])


def collect_gradients(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None = None, *, progress: bool | None = None
) -> Gradients:
    """Differentiate the loss of each batch with respect to every parameter of ``model``.

    The model runs in evaluation mode, as it will when it is pruned. Its ``.grad`` fields, modes, buffers and
    ``requires_grad`` flags are left as they were, also after an error. Parameters that the loss does not reach have
    zero gradients. Two tensors of each parameter's size are kept, whatever the number of batches.

    Args:
        batches: anything that can be iterated over, such as a DataLoader.
        loss: ``loss(model, batch) -> scalar tensor``; cross-entropy on pairs (inputs, labels) by default.
        progress: True shows a bar, False does not, None shows it where standard error is a terminal.

    Raises:
        InputError: the loss is no scalar, does not depend on the parameters, or is not finite; the batch is named.
        CalibrationError: there is no batch.
    """
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise InputError(f"the batches are a {type(batches).__name__}", fix="wrap one batch in a list: [batch]")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    distinct = list({id(p): p for p in parameters.values() if p.is_floating_point()}.values())
    sums = {id(p): _Sums(p, _groups_of(model, name)) for name, p in parameters.items() if p.is_floating_point()}
    count = 0
    with evaluation(cast(fx.GraphModule, model)), _same_buffers(model), _differentiable(distinct):
        for batch in track(batches, "gradients", total=length_hint(batches) or None, progress=progress):
            value = _evaluate(loss or cross_entropy, model, batch, count)
            found = torch.autograd.grad(value, distinct, allow_unused=True)
            for parameter, gradient in zip(distinct, found, strict=True):
                sums[id(parameter)].add(parameter.detach(), gradient)
            count += 1
    if count == 0:
        raise CalibrationError(
            "there is no batch to take gradients on", why="the data is empty",
            fix="a generator that was already read gives nothing: pass a list or a DataLoader",
        )  # fmt: skip
    named = {name: sums[id(p)] for name, p in parameters.items() if id(p) in sums}
    contributions = {
        (name, dim, parts): torch.stack(values)
        for name, entry in named.items()
        for (dim, parts), values in entry.contributions.items()
    }
    mean = {name: entry.total / count for name, entry in named.items()}
    square = {name: entry.squares / count for name, entry in named.items()}
    return Gradients(mean, square, contributions, count)


class _Sums:
    """One parameter's sums over batches."""

    def __init__(self, parameter: Tensor, groups: int) -> None:
        self.total = torch.zeros_like(parameter, requires_grad=False)
        self.squares = torch.zeros_like(parameter, requires_grad=False)
        self.contributions: dict[tuple[int, int], list[Tensor]] = {(d, 1): [] for d in range(parameter.dim())}
        if groups > 1:
            self.contributions[1, groups] = []

    def add(self, parameter: Tensor, gradient: Tensor | None) -> None:
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        self.total += gradient
        self.squares += gradient.square()
        product = (parameter * gradient).double()
        for (dim, parts), values in self.contributions.items():
            values.append(_along(product, dim, parts).cpu())


def _along(product: Tensor, dim: int, parts: int) -> Tensor:
    if parts > 1:
        units = torch.arange(parts * product.shape[1]).numpy()
        return rows(Member("", "weight", "conv2d", "in", dim, units, parts), product).sum(1)
    others = [d for d in range(product.dim()) if d != dim]
    return product.sum(others) if others else product


def _groups_of(model: nn.Module, name: str) -> int:
    path, _, parameter = name.rpartition(".")
    groups = getattr(model.get_submodule(path), "groups", 1)
    return groups if parameter == "weight" and isinstance(groups, int) else 1


def _evaluate(loss: Loss, model: nn.Module, batch: Any, index: int) -> Tensor:
    with torch.enable_grad():
        value = loss(model, batch)
    where = f"batch {index}"
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(f"the loss gives {_describe(value)}", where=where, fix="return a tensor with one element")
    if not value.requires_grad:
        raise InputError("the loss does not depend on the model's parameters", where=where,
                         fix="compute it from the model's output, without detach() or no_grad()")  # fmt: skip
    if not bool(torch.isfinite(value)):
        raise InputError(f"the loss is {float(value)}", where=where, fix="clean the data, or look into the loss")
    return value


@contextmanager
def _differentiable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Within this context every parameter takes part in differentiation."""
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Put the values of all buffers back on leaving: a loss may switch the model to training mode."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
