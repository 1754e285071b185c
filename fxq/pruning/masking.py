"""The dense model with removed channels masked: what a pruned model must equal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxq.errors import VerifyError
from fxq.ir.interpreter import GraphInterpreter
from fxq.pruning.masked_run import Masked, deterministic, stays, steps
from fxq.structure.analysis import Value
from fxq.structure.group import Mask
from fxq.structure.structure import Keep, Structure
from fxq.tracing import ModelInputs

_TOLERANCE = 1e-10
_JITTER = 1e-12


@dataclass(frozen=True)
class Equivalence:
    """How far a pruned model is from the masked dense one, in float64.

    Attributes:
        difference: the largest difference of any value in the graph, relative to the largest element of that value.
            Values that are little more than rounding, such as the sum of what a norm gives, differ more than that:
            there a difference as large as what a disturbance of 1e-12 in every operation makes counts as 1e-10.
        node: the name of the node where it occurs, "" where there is none.
        compared: how many values were compared.
    """

    difference: float
    node: str
    compared: int

    @property
    def holds(self) -> bool:
        """Whether nothing but float64 rounding lies between the two: 1e-10."""
        return self.compared > 0 and self.difference <= _TOLERANCE


@dataclass(frozen=True)
class _Gap:
    """The largest difference of a value, and its largest element."""

    node: str
    difference: float
    size: float

    def relative(self, noise: float = 0.0) -> float:
        size = max(self.size, noise / _TOLERANCE)
        return self.difference / size if size else float("inf") if self.difference else 0.0


def compare_with_masked(structure: Structure, keep: Keep, pruned: fx.GraphModule, inputs: ModelInputs) -> Equivalence:
    """Run ``pruned``, and the structure's dense graph with the other channels masked, in float64 on ``inputs``.

    After every operation of the dense graph the removed channels are set to zero, so that no consumer sees them; norms
    over channels are taken over those that stay. Then every value of the pruned graph is compared with what stays of
    the masked one. Only the identities of channels are shared with the pruning, neither the sliced weights nor the
    rewritten sizes.

    Raises:
        RuntimeError: the dense graph does not run in float64.
        VerifyError: the dense graph does, and the pruned one does not.
    """
    kept = structure.kept(keep)
    gaps = _gaps(structure, kept, Masked(structure, kept), GraphInterpreter(deterministic(pruned)), inputs)
    noise: dict[str, float] = {}
    if any(gap.relative() > _TOLERANCE for gap in gaps):
        disturbed = Masked(structure, kept, _JITTER)
        for gap in _gaps(structure, kept, Masked(structure, kept), disturbed, inputs, whole=True):
            noise[gap.node] = max(gap.difference, noise.get(gap.node, 0.0))
    found = [(gap.relative(noise.get(gap.node, 0.0)), gap.node) for gap in gaps]
    worst, node = max(found, key=lambda f: f[0], default=(0.0, ""))
    return Equivalence(worst, node if worst else "", len(gaps))


def _gaps(
    structure: Structure, kept: Mask, dense: Masked, other: fx.Interpreter, inputs: ModelInputs, whole: bool = False
) -> list[_Gap]:
    """The gap between each value of a masked run and the value of that name in another.

    Args:
        whole: the other has all channels too.
    """
    values = {node.name: value for node, value in structure.values.items()}
    assert isinstance(other.module, fx.GraphModule)
    names = {node.name for node in other.module.graph.nodes}
    gaps: list[_Gap] = []
    with torch.no_grad():
        others = steps(other, inputs)
        for node, expected in steps(dense, inputs):
            if node.name not in names:
                continue
            actual = _value_of(node.name, others)
            for a, b in _pairs(expected, actual, None if whole else values.get(node.name), kept):
                gaps.append(_Gap(node.name, _difference(a, b), _size(a)))
    return gaps


def _value_of(name: str, run: Iterator[tuple[fx.Node, Any]]) -> Any:
    """The value of the node ``name`` in a run that has not come to it yet."""
    try:
        return next(value for node, value in run if node.name == name)
    except RuntimeError as error:
        raise VerifyError(
            "the pruned model does not run where the masked dense model does", where=f"at or before node `{name}`",
            why=str(error), fix="protect the layers around it, and report this as a bug of fxq",
        ) from error  # fmt: skip


def _pairs(expected: Any, actual: Any, axes: Value, kept: Mask) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(expected, Tensor) and isinstance(actual, Tensor):
        if expected.is_floating_point():
            yield _sliced(expected, axes, kept), actual
        return
    leaves = zip(pytree.tree_leaves(expected), pytree.tree_leaves(actual), strict=True)
    parts = pytree.tree_leaves(axes, is_leaf=lambda a: isinstance(a, tuple)) if isinstance(axes, list) else []
    for i, (a, b) in enumerate(leaves):
        if isinstance(a, Tensor):
            yield from _pairs(a, b, parts[i] if i < len(parts) else None, kept)


def _sliced(value: Tensor, axes: Value, kept: Mask) -> Tensor:
    for dim, ids in enumerate(axes if isinstance(axes, tuple) else ()):
        if ids is not None and not bool(kept[ids].all()):
            value = value.index_select(dim, stays(ids, kept, value).nonzero().flatten())
    return value


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where one alone is not a number, or the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    found = _largest(a - b)
    if math.isfinite(found):  # two infinities, or two values that are no numbers, are equal: their difference is none
        return found
    differ = ~((a == b) | (a.isnan() & b.isnan()))
    return float((a - b).abs()[differ].nan_to_num(float("inf"), float("inf")).max()) if bool(differ.any()) else 0.0


def _size(a: Tensor) -> float:
    """The largest finite element."""
    found = _largest(a)
    return found if math.isfinite(found) else _largest(a.nan_to_num(0.0, 0.0, 0.0))


def _largest(a: Tensor) -> float:
    """The largest magnitude, in one pass; NaN where there is one."""
    return float(torch.linalg.vector_norm(a, torch.inf)) if a.numel() else 0.0
