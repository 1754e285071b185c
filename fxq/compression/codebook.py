"""Training the values that weights share: the codebook is the parameter, the codes stay."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fxq.compression.sharing import few_values
from fxq.errors import InputError

M = TypeVar("M", bound=nn.Module)

_MOST = 256


class CodebookWeight(nn.Module):
    """A weight as codes into a codebook: ``weight[i] = codebook[codes[i]]``.

    The gradient of an entry is the sum of the gradients of the weights that it stands for (Han et al., Deep
    Compression, ICLR 2016, section 3.3), which is what gathering does backwards. Exact zeros have code 0 and stay zeros
    where the weight had any.

    Args:
        weight: a tensor with at most 256 distinct values.
        values: those, ascending.
    """

    codes: Tensor

    def __init__(self, weight: Tensor, values: Tensor) -> None:
        super().__init__()
        zero = values == 0
        self.zero_apart = bool(zero.any())
        entries = values[~zero]
        codes = torch.searchsorted(entries, weight.detach().contiguous())
        if self.zero_apart:
            codes = (codes + 1).masked_fill_(weight == 0, 0)
        self.register_buffer("codes", codes.to(torch.uint8))

    def forward(self, codebook: Tensor) -> Tensor:
        """(entries,) -> the shape of the weight."""
        entries = torch.cat([codebook.new_zeros(1), codebook]) if self.zero_apart else codebook
        return entries.index_select(0, self.codes.flatten().int()).reshape(self.codes.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the codebook of a weight that has these codes."""
        first = torch.zeros(int(self.codes.max()) + 1, dtype=weight.dtype, device=weight.device)
        first[self.codes.flatten().int()] = weight.detach().flatten()
        return first[1:] if self.zero_apart else first


def train_shared(module: M) -> M:
    """Return a copy of ``module`` in which the values that weights share are what trains.

    Each layer whose ``weight`` has at most 256 distinct values, and at least twice as many elements, keeps its codes
    and gets its codebook as the parameter ``parametrizations.weight.original`` (a ``torch.nn.utils.parametrize``
    parametrisation): as many numbers train as there are distinct values, exact zeros apart, which stay. Everything else
    trains as before, and so does a weight that two layers hold in common. ``deepcopy`` and ``state_dict`` work as for
    any module; :func:`freeze_shared` gives plain weights back, which fxq's passes and ``fxq.save`` need.

        shared = fxq.compression.train_shared(fxq.passes.ShareWeights(4)(graph).graph_module)
        train(shared)
        plain = fxq.compression.freeze_shared(shared)

    Raises:
        InputError: no layer has shared weights.
    """
    twin = copy.deepcopy(module)
    owners = Counter(id(p) for layer in twin.modules() for p in layer._parameters.values())
    found = False
    for layer in list(twin.modules()):
        weight = layer._parameters.get("weight")
        values = _shared_values(weight) if owners[id(weight)] == 1 else None
        if weight is None or values is None:
            continue
        trains = weight.requires_grad
        parametrize.register_parametrization(layer, "weight", CodebookWeight(weight, values))
        codebook: nn.Parameter = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
        codebook.requires_grad_(trains)
        found = True
    if not found:
        raise InputError("no layer of the module has shared weights", where=type(module).__name__,
                         why=f"shared are weights with at most {_MOST} distinct values",
                         fix="share them first: fxq.passes.ShareWeights")  # fmt: skip
    return twin


def freeze_shared(module: M) -> M:
    """Return a copy of ``module`` with plain weights in the place of codebooks; the values are the same.

    Raises:
        InputError: no layer trains a codebook.
    """
    twin = copy.deepcopy(module)
    found = False
    for layer in list(twin.modules()):
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        steps = layer.parametrizations["weight"]  # type: ignore[index]
        if len(steps) != 1 or not isinstance(steps[0], CodebookWeight):
            continue
        with torch.no_grad():
            weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=steps.original.requires_grad)  # type: ignore[operator, union-attr]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        layer.weight = weight
        layer._parameters = {"weight": layer._parameters.pop("weight"), **layer._parameters}  # first, as it was
        found = True
    if not found:
        raise InputError("no layer of the module trains a codebook", where=type(module).__name__,
                         fix="fxq.compression.train_shared makes such layers")  # fmt: skip
    return twin


def _shared_values(weight: nn.Parameter | None) -> Tensor | None:
    """The distinct values of a weight that is shared, else None."""
    if weight is None or not weight.is_floating_point() or weight.dim() < 2:
        return None
    values = few_values(weight, _MOST)
    return values if values is not None and 2 * len(values) <= weight.numel() else None
