"""Penalties that make a network sparse while its user trains it: they live in the user's own loop."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxq.errors import InputError, nearest
from fxq.pruning.proximal import ProximalStep
from fxq.structure.group import Group, Member, rows, tensor_of

__all__ = ["ProximalStep", "group_lasso", "slimming_subgradient"]


def slimming_subgradient(model: nn.Module, strength: float, layers: Iterable[str] | None = None) -> None:
    """Add ``strength * sign(scale)`` to the gradient of every batch norm's scale: call it after ``backward()``.

    The subgradient of ``strength * sum |scale|`` (Liu et al., "Learning Efficient Convolutional Networks through
    Network Slimming", ICCV 2017, arXiv:1708.06519); the paper takes 1e-4 for VGG and 1e-5 for ResNet and DenseNet. ::

        loss.backward()
        slimming_subgradient(model, 1e-4)
        optimizer.step()

    Args:
        model: any module.
        strength: at least 0.
        layers: globs over module paths; None takes all batch norms that train.

    Raises:
        InputError: ``strength`` is negative, no batch norm matches, or none has a gradient yet.
    """
    if not strength >= 0:
        raise InputError(f"strength={strength}", fix="give a number of at least 0")
    norms = {path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm) and m.weight is not None}
    if layers is not None:
        wanted = list(layers)
        for glob in wanted:
            if not any(fnmatchcase(path, glob) for path in norms):
                raise InputError(f"{glob!r} matches no batch norm", fix=nearest(glob, norms))
        norms = {path: m for path, m in norms.items() if any(fnmatchcase(path, glob) for glob in wanted)}
    scales = [m.weight for m in norms.values() if m.weight.requires_grad]
    if not scales:
        raise InputError("the model has no batch norm whose scale trains", fix="group_lasso works on any layer")
    if all(scale.grad is None for scale in scales):
        raise InputError("no batch norm has a gradient", fix="call slimming_subgradient after loss.backward()")
    with torch.no_grad():
        for scale in scales:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=strength)


def group_lasso(groups: Iterable[Group], model: nn.Module) -> Tensor:
    """The penalty ``sum over units of sqrt(n_u) ||w_u||`` to add to the loss, times a strength of the user's.

    ``w_u`` is everything that goes when unit u goes: its part of every parameter of its group, ``n_u`` elements
    (Wen et al., "Learning Structured Sparsity in Deep Neural Networks", NIPS 2016, arXiv:1608.03665; the root of the
    size as in Yuan, Lin 2006). Units of fixed channels are left out. A unit that is 0 has the subgradient 0. ::

        loss = task(model(x), y) + 1e-4 * group_lasso(structure.groups, model)

    Args:
        groups: from ``fxq.structure.analyse``; only those that may be pruned count.
        model: a module with the module paths that the groups name; its parameters get the gradients.

    Returns:
        A scalar, differentiable; float32 at least.

    Raises:
        InputError: no group may be pruned, or ``model`` has other parameters.
    """
    terms = [_penalty(group, model) for group in groups if group.prunable]
    if not terms:
        raise InputError("no group of channels may be pruned", fix="see why with fxq.structure.analyse(...).groups")
    return torch.stack(terms).sum()


def _penalty(group: Group, model: nn.Module) -> Tensor:
    squares: Tensor | None = None
    sizes = torch.zeros(group.size + 1)
    for member in group.members:
        parameter = _parameter(model, member, group)
        if parameter is None:
            continue
        units = torch.from_numpy(member.units).to(parameter.device)
        units = torch.where(units < 0, group.size, units)  # an entry more for positions of other groups
        found = rows(member, parameter if parameter.element_size() >= 4 else parameter.float())
        sums = found.new_zeros(group.size + 1).index_add(0, units, found.square().sum(1))
        squares = sums if squares is None else squares + sums
        sizes.index_add_(0, units.cpu(), torch.full((len(found),), float(found.shape[1])))
    if squares is None:
        raise InputError(f"the group {group.name!r} has no parameter", fix="give groups of this model")
    free = torch.from_numpy(~group.fixed).to(squares.device)
    squares, sizes = squares[:-1][free], sizes[:-1].to(squares)[free]
    positive = squares > 0
    norms = torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)  # the root's slope at 0 is infinite
    return (sizes.sqrt() * norms).sum()


def _parameter(model: nn.Module, member: Member, group: Group) -> nn.Parameter | None:
    """The member's parameter in ``model``; None for a buffer."""
    try:
        found = tensor_of(model, member)
    except AttributeError as error:
        raise InputError(
            f"the model has no `{member.name}`", where=f"group {group.name!r}",
            fix="give the graph that was analysed, or a module with the same module paths",
        ) from error  # fmt: skip
    return found if isinstance(found, nn.Parameter) else None
