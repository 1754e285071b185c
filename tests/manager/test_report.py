from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from fxq.errors import InputError
from fxq.ir import Stage, take_snapshot
from fxq.ir.rewriter import Matched, Refused
from fxq.ir.stage import set_graph_state
from fxq.manager import LayerRecord, PassManager, PassRecord, Report, report_of
from fxq.manager.report import attach_report
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.passes.fuse_activation import FuseActivation


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.first = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(F.relu(self.first(x))))
        return y


def run() -> tuple[fx.GraphModule, Report]:
    torch.manual_seed(0)
    return PassManager([FoldBatchNorm()])(fx.symbolic_trace(Model().eval()), torch.randn(2, 3, 4, 4))


def test_printed() -> None:
    gm, report = run()
    report.note("a note")
    report.options = {"recipe": "float"}
    report.layers.append(LayerRecord("conv", "conv", "conv2d", "f32[2, 4, 4, 4]", why_float="no calibration data"))
    text = str(report)
    for part in ("fxq: recipe=float", "fold_batch_norm", "FLOAT", "6 -> 5", "1 fold_into_conv", " dB", "note: a note"):
        assert part in text
    assert "1 refused: not after a convolution or linear layer, but after an input" in text
    assert "no calibration data" in text
    assert max(map(len, text.splitlines())) <= 200
    assert gm is not None


def test_plain_data() -> None:
    _, report = run()
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    (record,) = data["passes"]
    assert (record["name"], record["numerics"], record["nodes"]) == ("fold_batch_norm", "CLOSE", [6, 5])
    assert (record["added"], record["removed"], record["modified"]) == (0, 1, True)
    assert record["matched"] == [{"rule": "fold_into_conv", "nodes": ["norm", "conv"], "where": "norm", "detail": ""}]
    assert record["refused"][0]["node"] == "first"
    assert (record["exact"], record["sqnr_db"] > 100) == (False, True)
    assert data["versions"]["torch"] == torch.__version__


def test_an_exact_pass_as_plain_data() -> None:
    gm, _ = run()
    _, report = PassManager([FuseActivation()])(as_canonical(gm), torch.randn(2, 3, 4, 4))
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))["passes"][0]
    assert (data["exact"], data["sqnr_db"], data["max_abs"], data["stage"]) == (True, None, 0.0, ["CANONICAL", "FUSED"])


def as_canonical(gm: fx.GraphModule) -> fx.GraphModule:
    set_graph_state(gm, stage=Stage.CANONICAL)
    return gm


def test_page(tmp_path: Path) -> None:
    _, report = run()
    page = report.html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "fold_batch_norm" in page
    assert "http" not in page.replace("http-equiv", "")


def test_it_travels_with_the_module() -> None:
    gm, report = run()
    with pytest.raises(InputError, match="carries no report"):
        report_of(fx.symbolic_trace(nn.ReLU()))
    attach_report(gm, report)
    assert report_of(gm) is report
    assert str(report_of(copy.deepcopy(gm))) == str(report)
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


def test_a_summary_counts() -> None:
    snapshot = take_snapshot(fx.symbolic_trace(nn.ReLU()))
    record = PassRecord(
        "p", "P()", "EXACT", snapshot, snapshot,
        matched=(Matched("a", ("x",), ""), Matched("b", ("x",), ""), Matched("a", ("y",), "")),
        refused=(Refused("a", "z", "", "one"), Refused("a", "u", "", "two"), Refused("a", "v", "", "two")),
    )  # fmt: skip
    assert record.summary() == "2 a, 1 b, 3 refused: two (+1 other reason)"
    assert PassRecord("p", "P()", "EXACT", snapshot, snapshot).summary() == ""


@dataclass(frozen=True)
class Weather:
    sky: str

    name: ClassVar[str] = "weather"

    def to_dict(self) -> dict[str, str]:
        return {"sky": self.sky}

    def __rich__(self) -> str:
        return f"the sky is {self.sky}"


def test_a_section_is_printed_and_is_data() -> None:
    _, report = run()
    assert report.to_dict()["sections"] == {}
    report.sections.append(Weather("grey"))
    assert "the sky is grey" in str(report)
    assert report.to_dict()["sections"] == {"weather": {"sky": "grey"}}
    assert "the sky is grey" in str(pickle.loads(pickle.dumps(report)))
