from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxq.errors import PassError
from fxq.ir import graph_text, take_snapshot
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.passes.prune_channels import PruneChannels
from tests.structure.pruned import Net, canonical, image, randomised, remove


def network() -> nn.Module:
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(8, 4, 1),
        )
    )  # fmt: skip


def run(*kept: tuple[str, tuple[int, ...]]) -> PassResult:
    gm, inputs = canonical(network(), image())
    return PruneChannels(kept)(gm, inputs)


def test_the_record_says_what_was_kept() -> None:
    result = run(("0", (1, 2, 4, 6)), ("3", (0, 4)))
    assert result.record.notes == ("0: 4 of 8 kept", "3: 2 of 8 kept")
    assert [m.rule for m in result.matched] == ["prune"]
    assert [(r.node, r.reason) for r in result.refused] == [("_6", "it is an output of the model")]
    assert "Conv2d(3, 4, " in repr(result.graph_module)


def test_the_source_is_left_alone() -> None:
    gm, inputs = canonical(network(), image())
    text, state = graph_text(take_snapshot(gm)), copy.deepcopy(gm.state_dict())
    y = gm(image())
    PruneChannels((("0", (0, 4)),))(gm, inputs)
    assert graph_text(take_snapshot(gm)) == text
    assert all(torch.equal(t, state[name]) for name, t in gm.state_dict().items())
    assert torch.equal(gm(image()), y)


def test_a_graph_in_training_mode_keeps_its_statistics() -> None:
    gm, inputs = canonical(network(), image())
    gm.train()
    state = copy.deepcopy(gm.state_dict())
    random = torch.random.get_rng_state()
    out = PruneChannels((("3", (0, 4)),))(gm, inputs).graph_module
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, tensor in gm.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert out.training


def test_pruning_in_two_steps_is_pruning_at_once() -> None:
    gm, inputs = canonical(network(), image())
    once = PruneChannels((("0", (1, 2, 5, 7)),))(gm, inputs).graph_module
    first = PruneChannels((("0", (1, 2, 3, 5, 6, 7)),))(gm, inputs).graph_module
    twice = PruneChannels((("0", (0, 1, 3, 5)),))(first, inputs).graph_module
    assert torch.equal(once(image()), twice(image()))


def test_nothing_to_remove_changes_nothing() -> None:
    assert not run().modified
    assert not run(("0", tuple(range(8)))).modified


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (("nothing", (0,)), "has no group of channels `nothing`"),
        (("0", ()), "at least one stays"),
        (("0", (0, 8)), "has the units 0 to 7"),
        (("0", (-1, 4)), "has the units 0 to 7"),
        (("6", (0,)), "some units of `6` must stay"),
        (("0", (0, 1, 4)), "must keep equally many units"),
        (("3", (0, 1)), "must keep equally many units"),
    ],
)
def test_what_cannot_be_kept_is_refused(kept: tuple[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(PassError, match=message):
        run(kept)


def test_a_layer_without_channels_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x).chunk(2, 1)
        return m.left(a) + m.right(b)

    net = Net(forward, a=nn.Conv2d(3, 4, 1), left=nn.Conv2d(2, 3, 1), right=nn.Conv2d(2, 3, 1))
    gm, inputs = canonical(randomised(net), image())
    with pytest.raises(PassError, match="would keep no channel"):
        PruneChannels((("a", (0, 1)),))(gm, inputs)


def test_inputs_are_needed() -> None:
    gm, _ = canonical(network(), image())
    with pytest.raises(PassError, match="needs example inputs"):
        PruneChannels(())(gm)


def test_shapes_are_recorded_anew() -> None:
    gm, inputs = canonical(network(), image())
    out = remove(gm, {"0": np.arange(8) % 2 == 0}, inputs)
    shapes = {n.name: str(n.meta["fxq_tensor"]) for n in out.graph.nodes if n.op == "call_module"}
    assert shapes["_0"] == "f32[2, 4, 6, 6]"


def test_masks_say_the_same_as_units_and_a_verifying_manager_accepts_the_new_sizes() -> None:
    gm, inputs = canonical(network(), image())
    keep = {"0": np.isin(np.arange(8), [1, 2, 4, 6]), "3": np.ones(8, dtype=np.bool_)}
    chosen = PruneChannels.of(keep)
    assert chosen == PruneChannels((("0", (1, 2, 4, 6)),))
    out = PassManager([chosen])(gm, inputs)
    assert out.graph_module.get_submodule("0").out_channels == 4
