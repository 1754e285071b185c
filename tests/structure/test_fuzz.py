"""Random networks, pruned at random: the pruned one is always the masked one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from fxq.passes.canonicalise import Canonicalise
from fxq.pruning.masking import compare_with_masked
from fxq.structure import Structure, analyse
from fxq.tracing import ModelInputs
from tests.structure.pruned import choose, image, randomised, remove
from tests.structure.random_networks import STEPS, RandomNetwork

_INPUTS = ModelInputs((image(2, 3, 4),))
_BATCH = 10


def described(seed: int) -> tuple[RandomNetwork, Structure]:
    """A network and its structure; plain ``torch.fx`` traces it, because that is quicker."""
    network = RandomNetwork(seed)
    gm = Canonicalise()(fx.symbolic_trace(randomised(network, seed)), _INPUTS.args).graph_module
    return network, analyse(gm, _INPUTS)


@pytest.mark.parametrize("batch", range(12))
def test_the_pruned_network_is_the_masked_network(batch: int) -> None:
    removed = 0
    for seed in range(batch * _BATCH, (batch + 1) * _BATCH):
        network, structure = described(seed)
        assert not structure.opaque, network.steps
        for ratio in (0.3, 0.6, 0.95):
            rng = np.random.default_rng(seed)
            keep = {g.name: choose(g, ratio, rng) for g in structure.groups if g.prunable}
            pruned = remove(structure.gm, keep, _INPUTS)
            result = compare_with_masked(structure, keep, pruned, _INPUTS)
            assert result.holds, f"network {seed}, ratio {ratio}: {result}; {network.steps}"
            assert structure.costs(keep).params == sum(p.numel() for p in pruned.parameters())
            assert [y.shape for y in pruned(image(3, 3, 4))] == [y.shape for y in network(image(3, 3, 4))]
            removed += sum(int((~mask).sum()) for mask in keep.values())
    assert removed > 10 * _BATCH, "most networks have something to prune"


def test_a_wrong_network_is_told_apart() -> None:
    """Exchange two inputs of one consumer's weight: the comparison holds only where that changes no output."""
    wrong = 0
    for seed in range(12):
        _, structure = described(seed)
        rng = np.random.default_rng(seed)
        keep = {g.name: choose(g, 0.3, rng) for g in structure.groups if g.prunable}
        pruned = copy.deepcopy(remove(structure.gm, keep, _INPUTS)).double()  # layers that stay whole are shared
        x = _INPUTS.args[0].double()
        for member in [m for g in structure.groups for m in g.consumers if m.dim == 1][:4]:
            weight: Any = pruned.get_submodule(member.path).weight
            right, before = weight.detach().clone(), torch.cat(pruned(x), 1)
            with torch.no_grad():
                weight[:, :2] = right[:, :2].flip(1)
                differs = not torch.allclose(torch.cat(pruned(x), 1), before, rtol=1e-6, atol=0)
                if differs:
                    assert not compare_with_masked(structure, keep, pruned, _INPUTS).holds, (seed, member.name)
                weight.copy_(right)
            wrong += differs
    assert wrong > 12


def test_every_step_is_drawn() -> None:
    drawn = {step.split("(")[0] for seed in range(120) for step in RandomNetwork(seed).steps}
    assert drawn == {step.__name__ for step in STEPS}
