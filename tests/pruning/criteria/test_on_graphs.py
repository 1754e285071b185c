"""Criteria on groups that the analysis of a graph finds, against the same groups written out by hand."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from fxq.manager import PassContext, PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.functionalise import Functionalise
from fxq.pruning.criteria import CRITERIA, APoZ, BatchNormScale, score_group
from fxq.pruning.evidence import collect_activations, collect_gradients, layers_of
from fxq.pruning.view import GroupView, view_groups
from fxq.structure.analyse import analyse
from fxq.tracing import ModelInputs, trace
from tests.pruning.groups import GROUPED, JOINED, PLAIN, RESIDUAL, Grouped, Joined, Plain, Residual, traced

CASES = {Plain: PLAIN, Residual: (RESIDUAL,), Grouped: GROUPED, Joined: (JOINED,)}
Views = dict[str, GroupView]


def squared_output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = model(batch).square().sum()
    return total


@functools.cache
def found_and_by_hand(network: type[nn.Module]) -> tuple[Views, Views]:
    batch = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = ModelInputs((batch,))
    manager = PassManager([Functionalise(), Canonicalise()], verify=False)
    model = manager(trace(traced(network()), inputs), context=PassContext(inputs)).graph_module
    found = analyse(model, inputs).groups
    gradients = collect_gradients(model, [batch], squared_output)
    activations = collect_activations(model, [batch], layers_of([*found, *CASES[network]]))
    return (
        view_groups(model, found, gradients=gradients, activations=activations),
        view_groups(model, CASES[network], gradients=gradients, activations=activations),
    )


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("network", CASES)
def test_the_same_scores(network: type[nn.Module], name: str) -> None:
    criterion = {"bn_scale": BatchNormScale("l1"), "apoz": APoZ("activation")}.get(name, CRITERIA[name])
    found, by_hand = found_and_by_hand(network)
    for group, view in by_hand.items():
        scores, expected = score_group(criterion, found[group]), score_group(criterion, view)
        torch.testing.assert_close(scores.values, expected.values, rtol=1e-12, atol=0)
        assert scores.members.names == expected.members.names
