"""The benchmark's run, table and JSON, with peers made up for the purpose."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import show
from benchmarks.measure import Run, Subject, measure, select, sqnr_db
from benchmarks.peers.peer import Peer, Prepared, rebatch


def _same(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    return Prepared(model, size_bytes=2_000_000)


def _tenth_off(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    return Prepared(lambda x: model(x) * 0.9)


def _broken(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    raise NotImplementedError("no kernel for this layer")


def _spoiler(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    nn.init.zeros_(model.get_parameter("weight"))
    return Prepared(model)


def _wrong_shape(model: nn.Module, example: Tensor, calibration: Sequence[Tensor]) -> Prepared:
    return Prepared(lambda x: model(x)[:, :1])


BASELINE = Peer("eager", "Eager", _same)
PEERS = [
    Peer("off", "A tenth off", _tenth_off),
    Peer("broken", "Broken", _broken),
    Peer("missing", "Missing", _same, needs=("no_such_package",)),
    Peer("wrong", "Wrong shape", _wrong_shape),
    Peer("spoiler", "Spoiler", _spoiler),
]


@pytest.fixture(scope="module")
def run() -> Run:
    torch.manual_seed(0)
    batches = [torch.randn(3, 8) for _ in range(3)]
    subject = Subject("tiny", nn.Linear(8, 4).eval(), batches[0][:2], batches, batches)
    return measure(subject, BASELINE, PEERS, budget_s=0.02, say=lambda line: None)


def test_every_peer_has_an_entry_in_order(run: Run) -> None:
    assert [entry.peer for entry in run.entries] == ["eager", "off", "broken", "missing", "wrong", "spoiler"]
    assert [entry.row is not None for entry in run.entries] == [True, True, False, False, False, True]
    assert run.shape == (2, 8)


def test_failures_say_why(run: Run) -> None:
    reasons = {entry.peer: entry.failure for entry in run.entries if entry.row is None}
    assert reasons["broken"] == "NotImplementedError: no kernel for this layer"
    assert reasons["wrong"] == "outputs are [10, 1], not [10, 4]"
    assert (reasons["missing"] or "").startswith("not installed: no_such_package; pip install")


def test_error_is_measured_against_the_float_network(run: Run) -> None:
    error = {entry.peer: (entry.sqnr_db, entry.agreement) for entry in run.entries}
    assert error["eager"] == (math.inf, 1.0)
    assert error["off"][0] == pytest.approx(20.0, abs=1e-4)
    assert error["off"][1] == 1.0


def test_each_peer_gets_a_model_of_its_own(run: Run) -> None:
    eager, spoiler = run.entries[0], run.entries[-1]
    assert eager.sqnr_db == math.inf
    assert spoiler.sqnr_db < 20


def test_the_table_shows_results_and_reasons(run: Run) -> None:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with console.capture() as capture:
        console.print(show.table(run))
    text = capture.get()
    assert "tiny, input [2, 8]" in text
    assert "identical" in text
    assert "20.0 dB" in text
    assert "2.0 MB" in text
    assert "Broken: NotImplementedError: no kernel for this layer" in text


def test_the_json_file_is_plain_and_whole(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "results" / "latency.json"
    show.write_json(path, show.report([run], show.environment()))
    read = json.loads(path.read_text())
    entries = {entry["peer"]: entry for entry in read["runs"][0]["entries"]}
    assert entries["eager"]["sqnr_db"] is None
    assert entries["off"]["row"]["median_s"] > 0
    assert entries["broken"]["row"] is None
    assert read["environment"]["versions"]["torch"] == torch.__version__
    assert [p.name for p in path.parent.iterdir()] == ["latency.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    show.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        show.write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["latency.json"]


def test_sqnr_in_decibels() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert sqnr_db(reference, reference + torch.tensor([0.5, 0.0])) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == math.inf


@pytest.mark.parametrize(("size", "count"), [(1, 6), (4, 2), (6, 1), (16, 1)])
def test_rebatching_keeps_every_image_and_fills_the_last_batch(size: int, count: int) -> None:
    images = torch.arange(6.0).reshape(6, 1)
    batches = rebatch([images[:4], images[4:]], size)
    assert [len(batch) for batch in batches] == [size] * count
    assert torch.equal(torch.cat(batches)[:6], images)


def test_selection_keeps_the_order_and_drops_repeats() -> None:
    peers = {peer.name: peer for peer in PEERS}
    assert [peer.name for peer in select(peers, ["missing", "off", "missing"])] == ["missing", "off"]
