from __future__ import annotations

import torch
from torch import Tensor, nn

from fxq.analysis.replay import Replay, downstream
from fxq.tracing import ModelInputs, trace


class _Chain(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=inplace)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.relu(self.a(x))) + x


class _ReadsWhatItOverwrote(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        z = y.add_(1)
        return z + y


def _graph(model: nn.Module):
    torch.manual_seed(0)
    return trace(model.eval(), torch.randn(2, 4))


def test_values_are_those_of_a_plain_run():
    gm = _graph(_Chain())
    x = torch.randn(3, 4)
    values = Replay(gm).values(ModelInputs((x,)))
    by_name = {n.name: v for n, v in values.items()}
    assert torch.equal(by_name["output"], gm(x))
    assert torch.equal(by_name["relu"], gm.a(x).relu())


def test_again_runs_only_what_is_needed():
    gm = _graph(_Chain())
    replay = Replay(gm)
    x = torch.randn(3, 4)
    values = replay.values(ModelInputs((x,)))
    known = {n: values[n] for n in values if n.name in ("x", "relu")}
    assert [n.name for n in replay.needed(known)] == ["b", "add", "output"]
    assert torch.equal(replay.again(known), gm(x))
    changed = {n: torch.zeros(3, 4) if n.name == "relu" else v for n, v in known.items()}
    assert torch.equal(replay.again(changed), gm.b(torch.zeros(3, 4)) + x)


def test_kept_values_survive_a_layer_that_overwrites_its_input():
    torch.manual_seed(0)
    gm = _graph(_Chain(inplace=True))
    replay = Replay(gm)
    x = torch.randn(3, 4)
    values = replay.values(ModelInputs((x,)))
    by_name = {n.name: n for n in values}
    assert replay.partial
    assert torch.equal(values[by_name["a"]], gm.a(x))
    assert float(values[by_name["a"]].min()) < 0
    known = {n: v for n, v in values.items() if n.name in ("x", "a")}
    assert torch.equal(replay.again(known), gm(x))
    assert torch.equal(replay.again(known), gm(x))


def test_a_value_that_is_read_after_it_was_overwritten_makes_it_run_everything():
    gm = _graph(_ReadsWhatItOverwrote())
    replay = Replay(gm)
    x = torch.randn(3, 4)
    values = replay.values(ModelInputs((x,)))
    assert not replay.partial
    assert torch.equal(next(v for n, v in values.items() if n.op == "output"), 2 * (2 * x + 1))
    assert torch.equal(replay.again({n: v for n, v in values.items() if n.op == "placeholder"}), 2 * (2 * x + 1))


def test_downstream():
    gm = _graph(_Chain())
    relu = next(n for n in gm.graph.nodes if n.name == "relu")
    assert {n.name for n in downstream(gm, [relu])} == {"relu", "b", "add", "output"}
