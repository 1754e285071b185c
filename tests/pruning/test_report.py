from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from torch import fx, nn

import fxq
from fxq.pruner.api import prune, prune_report
from fxq.pruning.selection.ladder import Ladder, build_ladder
from fxq.structure import Group
from tests.pruning.networks import images, residual, widths


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    return prune(residual(), images(), ratio=0.5, protect=["last"], round_to=1)


def test_every_group_is_listed(gm: fx.GraphModule) -> None:
    report = prune_report(gm)
    assert [g.name for g in report.groups] == ["stem", "conv1", "last", "fc"]
    stem = report["stem"]
    assert (stem.before, stem.after, len(stem.kept)) == (16, 8, 8)
    assert {"stem.weight", "norm.weight", "conv2.weight", "conv2.bias", "conv1.weight", "last.weight"} <= set(
        stem.members
    )
    assert stem.members[0] == "stem.weight"
    with pytest.raises(KeyError):
        report["norm"]


def test_why_groups_stay(gm: fx.GraphModule) -> None:
    report = prune_report(gm)
    assert report["conv1"].protected == ""
    assert report["last"].protected == "protect='last'"
    assert "output of the model" in report["fc"].protected


def test_what_each_coupling_would_keep(gm: fx.GraphModule) -> None:
    report = prune_report(gm)
    couplings = report["stem"].couplings
    assert set(couplings) == {"sum", "mean", "max", "leader", "union", "none"}
    assert couplings["none"] == tuple(range(16))
    assert couplings["mean"] == report["stem"].kept
    for how in ("sum", "max", "leader", "union"):
        other = prune(residual(), images(), ratio=0.5, round_to=1, coupling=how, check=False)
        assert prune_report(other)["stem"].kept == couplings[how]
    assert report["conv1"].couplings == {}


def test_couplings_are_found_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ladders: list[str] = []

    def counted(group: Group, *more: Any) -> Ladder:
        ladders.append(group.name)
        return build_ladder(group, *more)

    monkeypatch.setattr("fxq.pruning.alternatives.build_ladder", counted)
    report = prune_report(prune(residual(), images(), ratio=0.5, check=False))
    assert not ladders
    found = dict(report["stem"].couplings)
    assert ladders == ["stem"] * 6
    again = pickle.loads(pickle.dumps(report))
    assert again["stem"].couplings == found
    assert json.loads(json.dumps(report.to_dict()))["groups"][0]["couplings"] == {k: list(v) for k, v in found.items()}


def test_coupled_channels_that_are_not_pruned() -> None:
    gm = prune(residual(), images(), ratio=0.5, round_to=1, coupling="none")
    assert widths(gm) == {"stem": 16, "conv1": 12, "conv2": 16, "last": 16, "fc": 10}
    assert "coupling 'none'" in prune_report(gm)["stem"].protected


def test_costs_are_exact(gm: fx.GraphModule) -> None:
    report = prune_report(gm)
    for costs, model in ((report.before, residual()), (report.after, gm)):
        assert costs.params == sum(p.numel() for p in model.parameters())
        assert costs.macs == fxq.profile(model, images()).macs


def test_the_check_is_told(gm: fx.GraphModule) -> None:
    (check,) = prune_report(gm).checks
    assert check.holds
    assert "the pruned model equals the masked dense model" in str(fxq.report(gm))
    unchecked = prune(residual(), images(), ratio=0.5, check=False)
    assert "not checked against the masked dense model" in str(fxq.report(unchecked))


def test_printed(gm: fx.GraphModule) -> None:
    text = str(fxq.report(gm))
    for part in ("pruned: ratio=0.5; criterion l1, coupling mean, scope layer", "MACs on the example inputs: ",
                 "parameters: ", "16 -> 8", "50%", "stem, conv2, norm", "leader ", "none 8/16",
                 "protect='last'"):  # fmt: skip
        assert part in text
    assert max(map(len, text.splitlines())) <= 200


def test_plain_data(gm: fx.GraphModule) -> None:
    data = json.loads(json.dumps(fxq.report(gm).to_dict(), allow_nan=False))["sections"]["pruning"]
    assert data["goal"] == "ratio=0.5"
    assert data["groups"][0]["kept"] == list(prune_report(gm)["stem"].kept)
    assert data["after"]["params"] < data["before"]["params"]
    assert data["checks"][0]["holds"] is True


def test_it_travels_with_the_module(gm: fx.GraphModule) -> None:
    for other in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm))):
        assert str(fxq.report(other)) == str(fxq.report(gm))


def test_a_replayed_plan_says_so(gm: fx.GraphModule) -> None:
    again = prune(residual(), images(), plan=prune_report(gm).plan)
    assert "pruned: a plan" in str(fxq.report(again))
    assert prune_report(again)["stem"].kept == prune_report(gm)["stem"].kept


def test_a_group_of_one_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 4, 1)).eval()
    report = prune_report(prune(model, images(), ratio=0.5))
    assert all(g.before == g.after for g in report.groups)
