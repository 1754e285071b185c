"""Statistics are those of one pass over all data at once."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import CalibrationError, InputError
from fxq.ir.provenance import ensure_ids
from fxq.pruning.reestimate import ChannelSums, reestimate
from fxq.tracing import trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm1 = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Conv2d(4, 6, 3)
        self.norm2 = nn.BatchNorm2d(6, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.second(self.drop(F.relu(self.norm1(self.first(x))))))


def network() -> fx.GraphModule:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(2, 3, 8, 8))


def batches(*sizes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [i + torch.randn(size, 3, 8, 8, generator=generator) for i, size in enumerate(sizes)]


def test_pooled_moments_are_those_of_all_data() -> None:
    """With batches of different sizes and means, in float32 far from zero."""
    generator = torch.Generator().manual_seed(0)
    data = [1000 + 3 * i + torch.randn(n, 5, 7, generator=generator) for i, n in enumerate((1, 6, 2, 11))]
    sums = ChannelSums()
    for batch in data:
        sums.add(batch)
    everything = torch.cat(data).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(sums.mean, everything.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(sums.variance, everything.var(1), rtol=1e-10, atol=0)


def test_the_first_norm_has_the_statistics_of_one_pass_over_all_data() -> None:
    gm, data = network(), batches(4, 9, 2)
    found = reestimate(gm, data)
    with torch.no_grad():
        x = gm.first(torch.cat(data)).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(found.norm1.running_mean.double(), x.mean(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norm1.running_var.double(), x.var(1), rtol=1e-5, atol=1e-6)
    assert int(found.norm1.num_batches_tracked) == 3


def test_one_batch_gives_what_training_mode_gives() -> None:
    gm, (batch,) = network(), batches(8)
    found = reestimate(gm, [batch])
    expected = copy.deepcopy(gm)
    for norm in (expected.norm1, expected.norm2):
        norm.train()
        norm.momentum = None
        norm.reset_running_stats()
    expected(batch)
    for name in ("norm1", "norm2"):
        mine, theirs = found.get_submodule(name), expected.get_submodule(name)
        torch.testing.assert_close(mine.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.running_var, theirs.running_var, rtol=1e-5, atol=1e-6)


def test_later_norms_see_normalised_batches() -> None:
    """By the batch's own statistics, and not by those that are being replaced."""
    gm, data = network(), batches(4, 9)
    gm.norm1.running_mean.fill_(99.0)
    found = reestimate(gm, data)
    sums = ChannelSums()
    with torch.no_grad():
        for batch in data:
            x = F.batch_norm(gm.first(batch), None, None, gm.norm1.weight, gm.norm1.bias, training=True)
            sums.add(gm.second(F.relu(x)))
    torch.testing.assert_close(found.norm2.running_mean, sums.mean.float())
    torch.testing.assert_close(found.norm2.running_var, sums.variance.float())


def test_only_the_named_norms_change() -> None:
    gm = network()
    found = reestimate(gm, batches(4, 4), ["norm2"])
    assert found.norm1 is gm.norm1
    assert found.norm2 is not gm.norm2
    assert not torch.equal(found.norm2.running_mean, gm.norm2.running_mean)
    with torch.no_grad():
        x = gm.second(F.relu(gm.norm1(gm.first(torch.cat(batches(4, 4))))))
    torch.testing.assert_close(found.norm2.running_mean, x.mean((0, 2, 3)))


def test_the_model_stays_as_it_is() -> None:
    gm, data = network().train(), batches(4, 4)
    ensure_ids(gm)
    state, metas = copy.deepcopy(gm.state_dict()), [dict(n.meta) for n in gm.graph.nodes]
    found = reestimate(gm, data)
    with pytest.raises(CalibrationError, match="batch 1"):
        reestimate(gm, [data[0], torch.randn(2, 5, 8, 8)])
    assert all(torch.equal(v, state[n]) for n, v in gm.state_dict().items())
    assert [dict(n.meta) for n in gm.graph.nodes] == metas
    assert all(module.training for module in gm.modules())
    assert all(module.training for module in found.modules())
    assert found.first is gm.first


def test_what_cannot_be_estimated_is_refused() -> None:
    gm = network()
    with pytest.raises(CalibrationError, match="empty"):
        reestimate(gm, [])
    with pytest.raises(InputError, match=r"calls no module `norm3`(.|\n)*did you mean"):
        reestimate(gm, batches(2), ["norm3"])
    with pytest.raises(InputError, match="`first` is a Conv2d without running statistics"):
        reestimate(gm, batches(2), ["first"])
    with pytest.raises(CalibrationError, match=r"`norm2` gets one value for each channel(.|\n)*batch 0"):
        reestimate(gm, [torch.randn(1, 3, 5, 5)])
