from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxq
from fxq.errors import InputError
from fxq.ir.metrics import distance
from fxq.passes import Prune, ShareWeights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.left = nn.Conv2d(32, 32, 3, padding=1)
        self.right = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.left(x) + self.right(x))
        return self.head(F.avg_pool2d(x, 2).flatten(1))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def _pruned(model: nn.Module, p: Prune) -> torch.fx.GraphModule:
    manager = fxq.pipeline(fxq.Recipe("float"), "reference").insert_after("canonicalise", p)
    return fxq.compile(model, torch.randn(2, 3, 8, 8), passes=manager)


def test_a_ratio_inside_a_pipeline(model: nn.Module) -> None:
    gm = _pruned(model, Prune(ratio=0.5))
    assert gm.get_submodule("stem").out_channels == 16
    assert gm.get_submodule("head").in_features == 16 * 16
    assert gm(torch.randn(5, 3, 8, 8)).shape == (5, 10)
    (record,) = [p for p in fxq.report(gm).passes if p.name == "prune"]
    assert record.modified


@pytest.mark.parametrize("option", ["macs", "params"])
def test_budgets(model: nn.Module, option: str) -> None:
    x = torch.randn(1, 3, 8, 8)
    gm = _pruned(model, Prune(**{option: 0.5}))
    left = getattr(fxq.profile(gm, x), option) / getattr(fxq.profile(model, x), option)
    assert 0.46 <= left <= 0.5


def test_protected_layers_stay(model: nn.Module) -> None:
    gm = _pruned(model, Prune(ratio=0.5, protect=("stem",)))
    assert gm.get_submodule("stem").out_channels == 32
    assert gm.get_submodule("left").out_channels == 16


def test_prune_share_quantise_and_lower_in_one_run(model: nn.Module) -> None:
    batches = [torch.randn(4, 3, 8, 8) for _ in range(4)]
    manager = fxq.pipeline(fxq.Recipe("int8"), "reference").insert_after("canonicalise", Prune(ratio=0.25))
    manager = manager.insert_before("insert_observers", ShareWeights(6))
    gm = fxq.compile(model, batches[0], calibration=batches, passes=manager)
    small = _pruned(model, Prune(ratio=0.25))
    assert distance(small(batches[1]), gm(batches[1])).sqnr_db > 20
    assert gm.get_submodule("stem").weight.dtype is torch.int8
    assert gm.get_submodule("stem").weight.shape[0] == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how much to prune"),
        ({"ratio": 0.5, "macs": 0.5}, "ratio and macs are given"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"ratio": 0.5, "criterion": "taylor"}, r"the criterion 'taylor' needs gradients\n(.|\n)*fxq.prune"),
        ({"ratio": 0.5, "criterion": "l3"}, "no criterion is called 'l3'"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prune(**options)  # type: ignore[arg-type]
