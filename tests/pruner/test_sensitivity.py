from __future__ import annotations

import json

import pytest
import torch
from torch import fx, nn

import fxq
from fxq.errors import InputError
from fxq.pruner.api import prune
from fxq.pruner.sensitivity import sensitivity
from tests.pruning.networks import images, residual, widths


def distance(gm: fx.GraphModule) -> float:
    """Minus the distance from the dense model's output."""
    with torch.no_grad():
        return -float((gm(images(4)) - residual()(images(4))).norm())


def test_each_group_is_pruned_alone() -> None:
    seen: list[dict[str, int]] = []

    def evaluate(gm: fx.GraphModule) -> float:
        seen.append(widths(gm))
        return 0.0

    found = sensitivity(residual(), images(), evaluate, ratios=(0.5, 0.25), protect=["last"])
    dense = {"stem": 16, "conv1": 24, "conv2": 16, "last": 32, "fc": 10}
    assert seen[0] == dense
    assert seen[1:] == [
        {**dense, "stem": 12, "conv2": 12}, {**dense, "stem": 8, "conv2": 8},
        {**dense, "conv1": 18}, {**dense, "conv1": 12},
    ]  # fmt: skip
    assert found.ratios == (0.25, 0.5)
    assert (found["conv1"].units, found["conv1"].kept) == (24, (18, 12))


def test_the_group_that_matters_most_comes_first() -> None:
    found = sensitivity(residual(), images(), distance)
    assert found.dense == pytest.approx(0, abs=1e-4)
    sums = [sum(row.values) for row in found.rows]
    assert sums == sorted(sums)
    gm = prune(residual(), images(), ratio=0, ratios={found.rows[0].group: 0.5}, round_to=1)
    assert found.rows[0].values[1] == pytest.approx(distance(gm))


def test_models_are_evaluated_one_by_one() -> None:
    """What an evaluation does to its model, the next does not see."""

    def evaluate(gm: fx.GraphModule) -> torch.Tensor:
        value = gm.get_parameter("fc.weight").sum()
        with torch.no_grad():
            gm.get_parameter("fc.bias").zero_()
            gm.get_parameter("stem.weight").zero_()
        return gm(images()).sum() + value

    model = residual()
    first = sensitivity(model, images(), evaluate, ratios=(0.5,))
    assert first == sensitivity(model, images(), evaluate, ratios=(0.5,))
    assert bool(model.stem.weight.any())


def test_ratios_within_a_drop() -> None:
    found = sensitivity(residual(), images(), distance)
    drops = {row.group: [found.dense - v for v in row.values] for row in found.rows}
    limit = sorted(d for values in drops.values() for d in values)[4]
    within = found.within(limit)
    for group, values in drops.items():
        passed = [r for i, r in enumerate(found.ratios) if max(values[: i + 1]) <= limit]
        assert within[group] == max(passed, default=0.0)
    assert found.within(-1) == dict.fromkeys(drops, 0.0)
    prune(residual(), images(), ratio=0, ratios=within)


def test_shown() -> None:
    found = sensitivity(residual(), images(), lambda _: 0.5, ratios=(0.5,))
    for part in ("each group pruned alone", "ratio 0.5", "none", "conv1", "24", "0.5 (+0)"):
        assert part in str(found)
    assert json.loads(json.dumps(found.to_dict()))["rows"][0]["units"] == 16


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"a ratio is 1\.0"):
        sensitivity(residual(), images(), distance, ratios=(1.0,))
    with pytest.raises(InputError, match="no ratio to try"):
        sensitivity(residual(), images(), distance, ratios=(0,))
    with pytest.raises(InputError, match="evaluate returned a NoneType"):
        sensitivity(residual(), images(), lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match="training mode"):
        sensitivity(residual().train(), images(), distance)
    with pytest.raises(fxq.InputError, match="needs data"):
        sensitivity(nn.Conv2d(3, 4, 1).eval(), images(), distance, criterion="activation")
