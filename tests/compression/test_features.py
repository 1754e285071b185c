"""Hints by the names of nodes and modules: in graphs that passes rewrote, and where a name has no value to give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.compression import distill
from fxq.errors import InputError
from fxq.manager import PassManager
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.factorise import Factorise
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.insert_observers import InsertObservers
from fxq.passes.sparsify import Sparsify
from fxq.pruner.api import prune
from fxq.tracing import trace
from tests.compression.networks import batch, pair


def compressed(teacher: nn.Module, x: Tensor) -> Any:
    passes = [Canonicalise(), FoldBatchNorm(), FuseActivation(), Factorise(rank=4, exclude="head"), Sparsify(0.2)]
    gm, _ = PassManager(passes)(trace(copy.deepcopy(teacher).eval(), x), x)
    for p in gm.parameters():
        p.requires_grad_(True)
    return gm


def test_a_compressed_graph_learns_from_the_module_that_it_was_made_from() -> None:
    _, teacher = pair()
    x, _ = batch(32)
    student = compressed(teacher, x)
    # module paths mean the same in both, though batch norm and activation are fused and layers are pairs by now
    d = distill(student, teacher, alpha=1.0, hints=["stem", "block"])
    optimiser = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = d(x)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_pruned_student_is_narrower_than_its_teacher() -> None:
    _, teacher = pair()
    x, y = batch()
    d = distill(prune(teacher, x, ratio=0.5), teacher, hints=["stem", "block"], example_inputs=x)
    assert [tuple(p.shape) for p in d.parameters()] == [(8, 4), (8,)] * 2
    d(x, y).backward()
    assert all(p.grad is not None for p in d.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_values_of_nodes_and_paths() -> None:
    _, teacher = pair()
    x, _ = batch()
    gm = compressed(teacher, x)
    code, nodes = gm.code, len(gm.graph.nodes)
    d = distill(gm, teacher, alpha=1.0, hints={"stem_0": "stem", "stem": "stem"})
    d(x)
    value = gm.get_submodule("stem.0.expand")(gm.get_submodule("stem.0.reduce")(x))
    torch.testing.assert_close(d.terms["hints"], 2 * (value - teacher.stem(x)).square().mean().detach())
    assert (gm.code, len(gm.graph.nodes)) == (code, nodes)


def test_nodes_of_two_graphs_that_are_no_modules() -> None:
    student, teacher = pair(4, 8)
    x, _ = batch()
    student.eval()
    graphs = [trace(network, x) for network in (student, teacher)]
    assert all("mean" in {n.name for n in gm.graph.nodes} for gm in graphs)
    d = distill(*graphs, alpha=1.0, hints=["mean"], example_inputs=x)
    loss = d(x)
    ours, theirs = (net.block(net.stem(x)).mean((2, 3)) for net in (student, teacher))
    torch.testing.assert_close(d.terms["hints"], (d.regressors[0](ours) - theirs).square().mean().detach())
    loss.backward()
    assert student.stem[0].weight.grad is not None


def test_a_student_with_observers_between_its_layers() -> None:
    _, teacher = pair()
    x, y = batch()
    passes = [Canonicalise(), FoldBatchNorm(), FuseActivation(), InsertObservers()]
    gm, _ = PassManager(passes)(trace(copy.deepcopy(teacher).eval(), x), x)
    gm.requires_grad_(True)
    d = distill(gm, teacher, hints={"stem_0_observer": "stem", "block": "block"})
    d(x, y).backward()
    assert gm.get_parameter("stem.0.weight").grad is not None
    assert float(d.terms["hints"]) < 1e-10  # nothing is quantised yet
    assert float(d.terms["soft"]) < 1e-10


def test_a_graph_runs_the_layers_that_it_has_at_the_time() -> None:
    _, teacher = pair()
    x, _ = batch()
    gm = compressed(teacher, x)
    d = distill(gm, teacher, alpha=1.0, hints=["block"])
    before = d(x)
    head = gm.get_submodule("head")
    with torch.no_grad():
        head.weight.mul_(2.0)
    changed = d(x)
    assert not torch.equal(before, changed)
    gm.head = nn.Linear(8, 5)
    assert not torch.equal(d(x), changed)


def test_a_graph_in_training_mode() -> None:
    student, teacher = pair(8, 8)
    x, y = batch()
    gm = trace(student, x)
    d = distill(gm, teacher, hints={"stem_2": "stem", "block_2": "block"})
    mean = student.stem[1].running_mean.clone()
    d(x, y).backward()
    assert not torch.equal(student.stem[1].running_mean, mean)  # the student trains as it stands


def test_a_value_that_is_overwritten_in_place() -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)) for _ in range(2))
    d = distill(student, teacher, alpha=1.0, hints={"0": "2"}, example_inputs=None)
    with pytest.raises(InputError, match=r"overwritten in place later(.*\n)*.*the student, '0'(.*\n)*.*activation"):
        d(torch.randn(2, 4))
    gm = trace(student, torch.randn(2, 4))
    with pytest.raises(InputError, match="overwritten in place later"):
        distill(gm, teacher, alpha=1.0, hints={"_0": "2"})(torch.randn(2, 4))


def test_a_module_that_is_not_called_or_gives_no_tensor() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.spare, self.head = Pair(), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.pair(x)[0])
            return y

    x = torch.randn(2, 4)
    with pytest.raises(InputError, match=r"the module was not called\n.*the student, 'spare'"):
        distill(Model(), Model(), alpha=1.0, hints=["spare"])(x)
    with pytest.raises(InputError, match="the value is a tuple, not a tensor"):
        distill(Model(), Model(), alpha=1.0, hints=["pair"])(x)
