"""Activation statistics as scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxq.errors import InputError
from fxq.pruning.criteria import APoZ, MeanActivation
from fxq.pruning.evidence import collect_activations, layers_of
from fxq.pruning.view import GroupView, view_groups
from tests.pruning.groups import HEADS, PLAIN, RESIDUAL, Heads, Plain, Residual, group, member, traced


def images(count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 4, 4, generator=generator, dtype=torch.float64) for size in range(3, 3 + count)]


def test_counts_of_zeros_and_means_of_values() -> None:
    model, batches = traced(Plain()), images()
    views = view_groups(model, PLAIN, activations=collect_activations(model, batches, layers_of(PLAIN)))
    values = F.relu(model.bn1(model.conv1(torch.cat(batches))))
    zeros, means = [], []
    for j in range(4):
        channel = values[:, j].flatten().tolist()
        zeros.append(sum(v == 0 for v in channel))
        means.append(sum(abs(v) for v in channel) / len(channel))
    count = values[:, 0].numel()
    assert APoZ()(views["conv1"]).tolist() == [1 - z / count for z in zeros]
    assert 0 < min(zeros) < count
    torch.testing.assert_close(MeanActivation()(views["conv1"]), torch.tensor(means, dtype=torch.float64))


def test_a_head_has_the_mean_of_its_channels() -> None:
    model = traced(Heads())
    batch = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = GroupView(HEADS, model, activations=collect_activations(model, [batch], ["qkv"]))
    values = model.qkv(batch).abs().mean((0, 1))
    torch.testing.assert_close(MeanActivation()(view), values.reshape(3, 2, 3).mean((0, 2)).detach())


def test_each_layer_of_a_stage_is_counted_behind_its_own_addition() -> None:
    model, batches = traced(Residual()), images()
    statistics = collect_activations(model, batches, layers_of([RESIDUAL]))
    members = APoZ().per_member(GroupView(RESIDUAL, model, activations=statistics))
    assert members.names == ("shortcut.weight", "b.weight", "c.weight")
    assert torch.equal(members.values[0], members.values[1])  # both end in the first addition
    assert not torch.equal(members.values[0], members.values[2])


class Embedded(nn.Module):
    """An embedding and a linear layer, added."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.fc = nn.Linear(3, 4)

    def forward(self, words: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.words(words) + self.fc(x)


def test_embeddings_have_no_activations_and_are_not_scored() -> None:
    model = traced(Embedded())
    both = group("words", 4, member("words", "embedding", "out", 4, dim=1), member("fc", "linear", "out", 4))
    batch = (torch.tensor([1, 4]), torch.ones(2, 3, dtype=torch.float64))
    statistics = collect_activations(model, [batch], layers_of([both]))
    members = MeanActivation().per_member(GroupView(both, model, activations=statistics))
    assert members.names == ("fc.weight",)
    with pytest.raises(InputError, match="no activation statistics for `words"):
        MeanActivation()(GroupView(group("words", 4, both.members[0]), model, activations=statistics))


def test_apoz_is_refused_where_nothing_is_ever_zero() -> None:
    model = traced(Heads())
    batch = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = GroupView(HEADS, model, activations=collect_activations(model, [batch], ["qkv"]))
    with pytest.raises(
        InputError, match=r"no value of a group was zero\n  where: group 'qkv'\n  why: counted at `qkv`"
    ):
        APoZ()(view)
    assert torch.equal(APoZ(fallback="activation")(view), MeanActivation()(view))
    with pytest.raises(InputError, match=r"fallback is 'l1'\n  fix: known: 'activation'"):
        APoZ(fallback="l1")


@pytest.mark.parametrize("criterion", [MeanActivation(), APoZ()])
def test_data_is_needed(criterion: MeanActivation | APoZ) -> None:
    assert criterion.needs == {"data"}
    with pytest.raises(InputError, match=r"no activation statistics for `conv1.weight`\n  where: group 'conv1'"):
        criterion(GroupView(PLAIN[0], traced(Plain())))
