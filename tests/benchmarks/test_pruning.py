"""The pruning benchmark: one small network through worker and table, the command line, the supervisor with a fake."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import pruning, pruning_show
from benchmarks.pruning_peers import PEERS, Peer
from benchmarks.pruning_peers.supervise import Outcome, supervise
from benchmarks.pruning_peers.torch_pruning import classifiers
from benchmarks.pruning_peers.worker import examine


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 4)).eval()


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def _examine(peer: Peer, model: nn.Module, folder: Path) -> Outcome:
    path = folder / "result.json"
    examine(peer, model, _images(1), [_images(1), _images(3)], ratio=0.5, runs=2, path=path)
    return Outcome(peer.name, "small", json.loads(path.read_text()))


def test_a_small_network_through_worker_and_table(small: nn.Module, tmp_path: Path) -> None:
    outcome = _examine(PEERS["fxq"], small, tmp_path)
    found = outcome.found
    assert (found["stage"], found["failure"], found["runs"]) == ("done", None, [1, 3])
    assert found["before"] == {"macs": 6 * 6 * 16 * 27 + 16 * 4, "params": 16 * 27 + 16 + 32 + 16 * 4 + 4}
    assert found["after"] == {"macs": 6 * 6 * 8 * 27 + 8 * 4, "params": 8 * 27 + 8 + 16 + 8 * 4 + 4}
    assert len(found["times"]) == len(found["cpu_times"]) == 2
    assert found["check"]["compared"] > 0
    assert found["check"]["difference"] < 1e-10
    text = _text(outcome)
    assert "(50%)" in text
    assert "batch 1, 3" in text


def test_torch_pruning_keeps_its_classifier(small: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    found = _examine(PEERS["torch-pruning"], small, tmp_path).found
    assert found["failure"] is None
    assert found["after"]["macs"] == 6 * 6 * 8 * 27 + 8 * 4
    assert "check" not in found


def test_the_classifier_is_the_last_layer_and_what_is_as_wide() -> None:
    heads = nn.Sequential(nn.Conv2d(3, 10, 1), nn.Conv2d(10, 8, 1), nn.Linear(8, 10))
    assert classifiers(heads) == [heads[0], heads[2]]


def test_a_failure_is_a_result(small: nn.Module, tmp_path: Path) -> None:
    def broken(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
        raise ZeroDivisionError("no channels in a group")

    found = _examine(Peer("fxq", "fxq", broken, ""), small, tmp_path).found
    assert found["stage"] == "pruning"
    assert found["failure"] == "ZeroDivisionError: no channels in a group"


def test_outputs_of_another_shape_are_a_failure(small: nn.Module, tmp_path: Path) -> None:
    def narrow(model: nn.Module, example: Tensor, ratio: float) -> nn.Module:
        return nn.Sequential(model, nn.Linear(4, 2))

    found = _examine(Peer("fxq", "fxq", narrow, ""), small, tmp_path).found
    assert found["stage"] == "forward"
    assert found["failure"] == "ValueError: outputs are [[1, 2]], not [[1, 4]]"


_FAKE = """
import json, sys, time
peer, model, result = sys.argv[1:4]
json.dump({"stage": "pruning", "failure": None, "seconds": 0.25}, open(result, "w"))
if model == "slow":
    time.sleep(60)
if model == "broken":
    raise SystemExit("no such layer")
found = {"stage": "done", "failure": None, "arguments": sys.argv[4:]}
if model == "failing":
    found = {"stage": "counting", "failure": "InputError: no inputs"}
json.dump(found, open(result, "w"))
"""


def _fake(model: str, limit_s: float = 30.0) -> Outcome:
    command = (sys.executable, "-S", "-c", _FAKE)
    return supervise("fxq", model, ratio=0.5, runs=3, threads=2, limit_s=limit_s, command=command)


def test_a_worker_that_ends_well() -> None:
    outcome = _fake("well")
    assert outcome.failure is None
    assert outcome.found["arguments"] == ["--ratio", "0.5", "--runs", "3", "--threads", "2"]


def test_a_worker_that_does_not_end_is_killed_and_what_it_found_is_kept() -> None:
    outcome = _fake("slow", limit_s=1.0)
    assert outcome.failure == "pruning: not done after 1 s"
    assert outcome.found["seconds"] == 0.25
    assert outcome.wall_s < 30


def test_a_worker_that_fails() -> None:
    assert _fake("failing").failure == "counting: InputError: no inputs"
    assert _fake("broken").failure == "pruning: the process ended with status 1 no such layer"


def test_the_table_gives_reasons() -> None:
    text = _text(Outcome("torch-pruning", "swin_t", failure="pruning: not done after 200 s"))
    assert "swin_t, Torch-Pruning: pruning: not done after 200 s" in text


def test_the_command_line() -> None:
    options = pruning.parser().parse_args(["--models", "resnet18", "swin_t", "--ratio", "0.25", "--peers", "fxq"])
    assert (options.models, options.ratio, options.peers) == (["resnet18", "swin_t"], 0.25, ["fxq"])
    assert (options.limit, options.runs) == (200.0, 3)
    assert len(pruning.parser().parse_args([]).models) == 23


def test_a_ratio_outside_its_range_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pruning.parser().parse_args(["--ratio", "1"])
    assert "1 is not in [0, 1)" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PEERS, "fxq", Peer("fxq", "fxq", lambda m, x, r: m, "a call", needs=("no_such_package",)))
    assert pruning.main(["--models", "resnet18", "--peers", "fxq"]) == 0
    assert "not installed: no_such_package" in capsys.readouterr().out


def _text(outcome: Outcome) -> str:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with console.capture() as capture:
        console.print(pruning_show.table([outcome], ratio=0.5, threads=1))
    return capture.get()
