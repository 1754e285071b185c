"""The benchmark of dynamic quantisation: one small case, the table, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import dynamic


@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "Linear"])
def test_a_case(kind: str, granularity: str) -> None:
    result = dynamic.measure(dynamic.Case(kind, 16, 2), budget_s=0.02, granularity=granularity)
    assert [row.name for row in result.rows] == ["float", "torch", "fxq"]
    assert result.sqnr_db["fxq"] > 30
    assert dynamic.table([result]).row_count == 1


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(dynamic, "CASES", (dynamic.Case("Linear", 16, 2), dynamic.Case("Linear", 16, 3)))
    file = tmp_path / "results" / "dynamic.json"
    assert dynamic.main(["--budget", "0.02", "--rows", "2", "--granularity", "tensor", "--json", str(file)]) == 0
    assert "Linear 16, batch 2" in capsys.readouterr().out
    (found,) = json.loads(file.read_text())["results"]
    assert found["case"] == {"kind": "Linear", "width": 16, "rows": 2}


@pytest.mark.parametrize(("recipe", "least_db"), [("weight8", 35), ("weight4", 15)])
def test_weights_alone(
    recipe: str, least_db: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dynamic, "CASES", (dynamic.Case("GRU", 64, 2), dynamic.Case("Linear", 64, 2)))
    file = tmp_path / "dynamic.json"
    assert dynamic.main(["--budget", "0.02", "--recipe", recipe, "--json", str(file)]) == 0
    assert f"fxq {recipe}" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["recipe"] == recipe
    (result,) = found["results"]
    assert result["case"]["kind"] == "Linear"
    assert result["sqnr_db"]["fxq"] > least_db
