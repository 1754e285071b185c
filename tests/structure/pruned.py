"""Prune a small network at random, and check everything that must hold of the result."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxq.analysis import profile
from fxq.passes.canonicalise import Canonicalise
from fxq.passes.decompose_attention import DecomposeAttention
from fxq.passes.functionalise import Functionalise
from fxq.passes.prune_channels import PruneChannels
from fxq.pruning.masking import compare_with_masked
from fxq.structure import Group, Mask, Structure, analyse
from fxq.tracing import ModelInputs, normalise_inputs, trace


@dataclass(frozen=True)
class Pruned:
    """A pruned network, and what it was made from."""

    gm: fx.GraphModule
    structure: Structure
    keep: Mapping[str, Mask]
    inputs: ModelInputs

    def layer(self, path: str) -> Any:
        """The layer at ``path``."""
        return self.gm.get_submodule(path)

    @property
    def pruned(self) -> list[str]:
        """The names of the groups that lost units."""
        return [name for name, mask in self.keep.items() if not mask.all()]


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic values that tell channels apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator) * 0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model.eval()


def canonical(model: nn.Module, *args: Tensor) -> tuple[fx.GraphModule, ModelInputs]:
    """The graph that channels are pruned in."""
    gm: fx.GraphModule = trace(model, args)
    inputs = normalise_inputs(model, args)
    assert inputs is not None
    for p in (Functionalise(), Canonicalise(), DecomposeAttention()):
        gm = p(gm, inputs).graph_module
    return gm, inputs


def structure_of(model: nn.Module, *args: Tensor) -> Structure:
    """The structure of ``model``."""
    return analyse(*canonical(randomised(model), *args))


def choose(group: Group, ratio: float, rng: np.random.Generator) -> Mask:
    """Keep units at random, equally many in every part that says so, and at least one where one is needed."""
    mask = group.fixed.copy()
    cells = np.zeros(group.size, dtype=np.int64)
    for partition in group.balance:
        cells = cells * (partition.max() + 2) + partition + 1
    sizes = [int((cells == c).sum()) for c in np.unique(cells)]
    if group.balance and (len(set(sizes)) > 1 or mask.any()):
        return np.ones_like(mask)
    wanted = {int(needed[0]) for needed in group.cover}
    for cell in np.unique(cells):
        units = sorted(rng.permutation(np.flatnonzero(cells == cell)).tolist(), key=lambda u: u not in wanted)
        mask[units[: max(1, len(units) - int(len(units) * ratio))]] = True
    return mask if all(mask[needed].any() for needed in group.cover) else np.ones_like(mask)


def prune(model: nn.Module, *args: Tensor, ratio: float = 0.5, seed: int = 0) -> Pruned:
    """Prune every group of ``model`` at random; nothing is checked."""
    gm, inputs = canonical(model, *args)
    structure = analyse(gm, inputs)
    rng = np.random.default_rng(seed)
    keep = {g.name: choose(g, ratio, rng) for g in structure.groups if g.prunable}
    return Pruned(remove(gm, keep, inputs), structure, keep, inputs)


def remove(gm: fx.GraphModule, keep: Mapping[str, Mask], inputs: ModelInputs) -> fx.GraphModule:
    """What PruneChannels makes of ``gm``."""
    kept = tuple((name, tuple(np.flatnonzero(mask).tolist())) for name, mask in keep.items())
    return PruneChannels(kept)(gm, inputs).graph_module


def check(
    model: nn.Module, *args: Tensor, others: tuple[tuple[Tensor, ...], ...] = (), ratio: float = 0.5, seed: int = 0
) -> Pruned:
    """Prune ``model`` at random, check that the result is right, and return it.

    Args:
        others: further inputs, of other sizes, that the pruned network must take.
    """
    model = randomised(model, seed)
    before = copy.deepcopy(model.state_dict())
    out = prune(model, *args, ratio=ratio, seed=seed)
    assert_right(out)
    for given in (args, *others):
        with torch.no_grad():
            assert shapes(out.gm(*given)) == shapes(model(*given))
    assert_trains(out.gm, args)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before), "the source was changed"
    return out


def assert_right(out: Pruned) -> None:
    """The pruned network is the masked one, and costs what was computed."""
    result = compare_with_masked(out.structure, out.keep, out.gm, out.inputs)
    assert result.holds, f"{result.node} differs by {result.difference}"
    costs = out.structure.costs(out.keep)
    assert costs.params == sum(p.numel() for p in out.gm.parameters())
    assert costs.macs == profile(out.gm, out.inputs).macs
    assert out.structure.costs().macs == profile(out.structure.gm, out.inputs).macs


def assert_trains(gm: fx.GraphModule, args: tuple[Tensor, ...]) -> None:
    """A copy of ``gm`` has parameters that are leaves and get gradients."""
    copied = copy.deepcopy(gm)
    outputs = copied(*args)
    tensors = [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.requires_grad]
    torch.stack([t.square().sum() for t in tensors]).sum().backward()
    assert all(p.is_leaf for p in copied.parameters())
    assert any(p.grad is not None for p in copied.parameters())
    assert all(p.grad is None for p in gm.parameters())


def shapes(outputs: Any) -> list[tuple[int, ...]]:
    """The shape of every tensor among ``outputs``."""
    return [tuple(t.shape) for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def image(batch: int = 2, channels: int = 3, size: int = 8, seed: int = 0) -> Tensor:
    """A batch of images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(batch: int = 2, length: int = 5, width: int = 8, seed: int = 0) -> Tensor:
    """A batch of sequences."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A network that is written in one line: layers by name, and what ``forward`` does with them."""

    def __init__(self, function: Any, **layers: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, nn.Parameter(layer) if isinstance(layer, Tensor) else layer)

    def forward(self, *args: Tensor) -> Any:
        return self.function(self, *args)
