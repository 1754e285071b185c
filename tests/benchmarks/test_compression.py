"""The compression benchmark: one small trained network through its parts, the table, the command line."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.data import TensorDataset

from benchmarks import compression
from benchmarks.compressing import PARTS, Part, Row, Settings, tp
from benchmarks.compressing.part import before_and_after, macs_share, reinitialised
from benchmarks.compressing.show import table
from benchmarks.networks import Images, ResNet, Trained

SETTINGS = Settings(macs=0.5, steps=2, budget_s=0.05)


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A network that nobody trained: what is tested is not accuracy."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8)
    data = TensorDataset(images, torch.arange(64) % 10)
    return Trained(ResNet(1).eval(), Images(data, data), 0.1)


@pytest.mark.parametrize("method", ["fxq l1", "fxq taylor", "fxq random", "fxq l1, global"])
def test_fxq_meets_the_budget(trained: Trained, method: str) -> None:
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    values = PARTS["criteria"].methods[method](trained, SETTINGS, 0)
    assert values["macs"] == pytest.approx(0.5, abs=0.02)
    assert set(PARTS["criteria"].columns) <= set(values)
    assert all(torch.equal(value, before[name]) for name, value in trained.model.state_dict().items())


def test_torch_pruning_is_brought_near_the_budget(trained: Trained) -> None:
    pytest.importorskip("torch_pruning")
    pruned = tp.prune(trained, "GroupMagnitudeImportance", 0.5, seed=0, p=1)
    assert macs_share(trained, pruned) == pytest.approx(0.5, abs=0.05)
    assert pruned.get_parameter("fc.weight").shape[0] == 10
    assert macs_share(trained, trained.model) == 1


def test_fine_tuning_works_on_a_copy(trained: Trained) -> None:
    model = reinitialised(trained.model, seed=1)
    weights = model.get_parameter("fc.weight").clone()
    assert not torch.equal(weights, trained.model.fc.weight)
    values = before_and_after(model, trained, SETTINGS, 0)
    assert values["macs"] == 1
    assert values["dense"] == 0.1
    assert torch.equal(model.get_parameter("fc.weight"), weights)


def test_reconstruction_and_distillation_run(trained: Trained) -> None:
    methods = PARTS["reconstruction"].methods
    plain = methods["fxq l1"](trained, SETTINGS, 0)
    mended = methods["fxq l1, least squares"](trained, SETTINGS, 0)
    assert plain["macs"] == mended["macs"]
    for method in PARTS["distillation"].methods.values():
        assert 0 <= method(trained, SETTINGS, 0)["after"] <= 1


def _constant(trained: Trained, settings: Settings, seed: int, *, value: float) -> Mapping[str, float]:
    return {"macs": settings.macs, "after": value + seed / 100}


def _broken(trained: Trained, settings: Settings, seed: int) -> Mapping[str, float]:
    raise ModuleNotFoundError("No module named 'torch_pruning'")


PART = Part("made up", "two methods", {"good": functools.partial(_constant, value=0.9), "bad": _broken},
            {"macs": "MACs left", "before": "pruned", "after": "fine-tuned"})  # fmt: skip


def test_the_table_has_means_spreads_and_reasons(trained: Trained) -> None:
    rows = [compression.measure("made up", name, method, trained, SETTINGS, seed)
            for name, method in PART.methods.items() for seed in (0, 2)]  # fmt: skip
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with console.capture() as capture:
        console.print(table(PART, rows))
    text = " ".join(capture.get().split())
    assert "two methods (networks 0, 2)" in text
    assert "91.0 % ± 1.4" in text
    assert "bad, network 2: ModuleNotFoundError: No module named 'torch_pruning'" in text
    assert "pruned" not in text.replace("torch_pruning", "")


def test_a_method_may_have_several_lines() -> None:
    part = Part("made up", "latency", {"net": _broken}, {"(ms)": "latency", "(x)": "speed-up"}, ("float", "int8"))
    values = {"float: (ms)": 8.0, "float: (x)": 1.0, "int8: (ms)": 2.0, "int8: (x)": 4.0}
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with console.capture() as capture:
        console.print(table(part, [Row("made up", "net", 0, values)]))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "net:" in line]
    assert lines == [["net: float", "8.00 ms", "1.00x"], ["net: int8", "2.00 ms", "4.00x"]]


def test_an_interrupted_run_goes_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def train(seed: int) -> Trained:
        calls.append(seed)
        return trained

    monkeypatch.setitem(PARTS, "criteria", PART)
    monkeypatch.setattr(compression, "trained_resnet20", train)
    path = tmp_path / "compression.json"
    arguments = ["--parts", "criteria", "--seeds", "0", "--json", str(path)]
    assert compression.main(arguments) == 0
    assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["good", "bad"]
    monkeypatch.setitem(PARTS, "criteria", Part("made up", "one", {"good": PART.methods["good"]}, PART.columns))
    assert compression.main(arguments) == 0
    assert calls == [0]
    assert compression.main([*arguments, "--steps", "7"]) == 0
    assert calls == [0, 0]
    assert "90.0 %" in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compression.parser().parse_args(["--parts", "accuracy"])
    assert "invalid choice: 'accuracy'" in capsys.readouterr().err
