"""First-order Taylor expansions of the loss around the weights, and around gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fxq.errors import InputError, nearest
from fxq.pruning.criteria.base import GRADIENTS, LayerCriterion
from fxq.pruning.view import GroupView
from fxq.structure.group import Member

_FORMS = ("square", "absolute", "elements")


@dataclass(frozen=True)
class Taylor(LayerCriterion):
    """How much the loss changes, to first order, when a unit's weights become zero.

    With the gradient g_b of batch b and the mean over batches E_b::

        square:    s_j = E_b (sum_{i in j} w_i g_b,i)^2      Molchanov et al., "Importance Estimation for Neural Network
                                                             Pruning", CVPR 2019, arXiv:1906.10771: joint importance
        elements:  s_j = E_b  sum_{i in j} (w_i g_b,i)^2     the same, as the sum over single weights
        absolute:  s_j = E_b |sum_{i in j} w_i g_b,i|        after Molchanov et al., "Pruning Convolutional Neural
                                                             Networks for Resource Efficient Inference", ICLR 2017,
                                                             arXiv:1611.06440, which expands around feature maps

    Each batch is squared by itself and then averaged: gradients of different sign do not cancel.
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({GRADIENTS})
    form: Literal["square", "absolute", "elements"] = "square"

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise InputError(f"no form of Taylor is called {self.form!r}", fix=nearest(str(self.form), _FORMS))

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return the importance of each unit's weights, shape (size,)."""
        if self.form == "elements":
            squares = view.tensor(member).double().square() * view.squared_gradient(member)
            return view.per_unit(member, view.by_position(member, squares).sum(1))
        gates = _gates(view, member)
        return gates.square().mean(1) if self.form == "square" else gates.abs().mean(1)


@dataclass(frozen=True)
class TaylorGate(LayerCriterion):
    """How much the loss changes, to first order, when a gate on the unit's output closes.

    A gate z_j = 1 multiplies what the norm behind a layer gives, y_j = gamma_j x_j + beta_j; then
    ``dL/dz_j = gamma_j dL/dgamma_j + beta_j dL/dbeta_j`` and ``s_j = E_b (dL_b/dz_j)^2``. Behind a layer without a norm
    of its own the gate is on the layer's output, where ``dL/dz_j = sum_{i in j} w_i dL/dw_i + b_j dL/db_j``.

    Molchanov, Mallya, Tyree, Frosio, Kautz, "Importance Estimation for Neural Network Pruning", CVPR 2019,
    arXiv:1906.10771.
    """

    name: ClassVar[str] = "taylor_gate"
    needs: ClassVar[frozenset[str]] = frozenset({GRADIENTS})

    def scored(self, view: GroupView) -> tuple[Member, ...]:
        """For each producer the scale of the norm behind it, else the producer; the leader's first."""
        gates = [view.norm_behind(m) or m for m in view.producers] or view.consumers
        return tuple({(m.name, m.dim): m for m in gates}.values())

    def unit_scores(self, view: GroupView, member: Member) -> Tensor:
        """Return the importance of each unit's gate, shape (size,)."""
        gates = _gates(view, member)
        bias = view.find(member.path, "bias") if member.role != "in" else None
        if bias is not None:
            gates = gates + _gates(view, bias)
        return gates.square().mean(1)


def _gates(view: GroupView, member: Member) -> Tensor:
    """The gradient with respect to a gate on each unit of the member's tensor: (size, batches)."""
    return view.per_unit(member, view.contributions(member).T)
