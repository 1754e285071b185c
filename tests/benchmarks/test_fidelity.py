"""The fidelity benchmark on a network that nobody trained: the table, the file, the counts of int8 layers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fxq
from benchmarks import fidelity
from benchmarks.fidelity import FLOAT, Cell, Settings, measure, table
from benchmarks.measure import sqnr_db
from benchmarks.networks import NETWORKS, Images, TrainedNetwork
from benchmarks.quantisers import TOOLS, Quantised, Tool, fxq_qat, fxq_tool, pt2e
from benchmarks.quantisers.tool import Coverage

SETTINGS = Settings(batch=8, batches=2)


@pytest.fixture(scope="module")
def network() -> TrainedNetwork:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(16, 3, 16, 16), torch.arange(16) % 10)
    return TrainedNetwork("vit", "digits", NETWORKS["vit"].make().eval(), Images(data, data), 0.1)


def test_fxq_is_judged_against_the_float_network(network: TrainedNetwork) -> None:
    cell = measure(network, "fxq-int8", SETTINGS)
    assert cell.failure is None
    assert 20 < cell.sqnr_db < 70
    assert 0 <= cell.top1 <= 1
    assert measure(network, FLOAT, SETTINGS).sqnr_db == math.inf
    assert cell.images == 16


def test_training_with_quantisation_starts_from_the_calibrated_network(network: TrainedNetwork) -> None:
    batches = list(network.images.train.tensors[0].split(8))
    quantised = fxq_qat._quantise(network, batches[0], batches, steps=2)
    x = network.images.test.tensors[0]
    with torch.no_grad():
        assert sqnr_db(network.model(x), quantised.call(x)) > 20
    assert quantised.coverage == Coverage(20, 28, 0)


def test_a_tool_that_fails_has_its_reason_in_the_table(
    network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(network: TrainedNetwork, example: Tensor, calibration: object) -> Quantised:
        raise RuntimeError("no kernel for this network\nand more")

    monkeypatch.setitem(TOOLS, "nncf", Tool("nncf", "NNCF", fails))
    cell = measure(network, "nncf", SETTINGS)
    assert cell.failure == "RuntimeError: no kernel for this network\nand more"
    shown = table(
        "digits", [cell, Cell("vit", "digits", "fxq-int8", 0, 16, 0.5, 40.0, "3/3 + 1")], ["fxq-int8", "nncf"], ["vit"]
    )
    rows = [list(column.cells) for column in shown.columns]
    assert rows[2] == ["50.00%\n*40.0 dB\n3/3 + 1"]
    assert rows[3] == ["failed: RuntimeError: no kernel for this network"]
    assert shown.caption == "vit, nncf: RuntimeError: no kernel for this network"


def test_the_table_tells_points_from_float_and_what_an_image_is_worth() -> None:
    of_float = Cell("vit", "digits", FLOAT, images=400, top1=0.5, sqnr_db=math.inf)
    shown = table(
        "digits", [of_float, Cell("vit", "digits", "nncf", 0, 400, 0.4975, 30.0, "3/3 + 1")], ["nncf"], ["vit"]
    )
    assert "400 test images (one is 0.250 points)" in str(shown.title)
    assert [list(column.cells) for column in shown.columns][2] == ["49.75% (-0.25)\n*30.0 dB\n3/3 + 1"]


def test_a_tool_that_is_not_installed_says_so(network: TrainedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOOLS, "nncf", Tool("nncf", "NNCF", TOOLS["nncf"].quantise, needs=("no_such_package",)))
    assert "not installed: no_such_package" in str(measure(network, "nncf", SETTINGS).failure)


class Small(nn.Module):
    """A convolution with an activation, a product of matrices, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(2)
        logits: Tensor = self.fc((x @ x.transpose(1, 2)).flatten(1))
        return logits


def test_what_fxq_leaves_in_float_is_counted() -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = fxq.compile(Small().eval(), calibration=[x])
    assert fxq_tool.coverage(compiled) == Coverage(2, 3, 0)
    assert fxq_tool.coverage(fxq.compile(Small().eval(), x, recipe="float")) == Coverage(0, 3, 0)


def test_what_pt2e_leaves_in_float_is_counted() -> None:
    gm = torch.export.export(Small().eval(), (torch.randn(4, 3, 8, 8),)).module()
    assert isinstance(gm, torch.fx.GraphModule)
    assert pt2e.coverage(gm) == Coverage(0, 3, 0)


def test_a_run_goes_on_from_its_file(
    network: TrainedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[str] = []

    def load(name: str, task: str, seed: int) -> TrainedNetwork:
        loaded.append(name)
        return network

    monkeypatch.setattr(fidelity, "trained_network", load)
    path = tmp_path / "fidelity.json"
    command = ["--networks", "vit", "--tasks", "digits", "--tools", "fxq-int8", "--batch", "8", "--batches", "2"]
    assert fidelity.main([*command, "--json", str(path)]) == 0
    cells = json.loads(path.read_text())["cells"]
    assert [(c["tool"], c["sqnr_db"] is None) for c in cells] == [(FLOAT, True), ("fxq-int8", False)]
    assert fidelity.main([*command, "--json", str(path)]) == 0
    assert loaded == ["vit"]
    assert fidelity.main([*command, "--json", str(path), "--again", "fxq-int8"]) == 0
    assert loaded == ["vit", "vit"]
    assert fidelity.main([*command, "--json", str(path), "--seeds", "0", "1"]) == 0
    assert loaded == ["vit", "vit", "vit"]
    assert [c["seed"] for c in json.loads(path.read_text())["cells"]] == [0, 0, 1, 1]
    assert "ViT" in capsys.readouterr().out
