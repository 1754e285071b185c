"""Calls after a pause, with a clock that the test moves."""

from __future__ import annotations

import importlib.util
import io

import pytest
import torch
from rich.console import Console

from benchmarks import idle
from benchmarks.idle import after_another, after_pause
from benchmarks.measure import Entry


class Machine:
    """A clock and peers: a call takes a second, and as long as the pause before it where that is longer."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0
        self.log: list[str] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept = seconds
        self.log.append("sleep")

    def peer(self, name: str) -> idle.Call:
        def call() -> None:
            self.now += max(1.0, self.slept)
            self.slept = 0.0
            self.log.append(name)

        return call


def test_the_call_after_the_pause_is_timed() -> None:
    machine = Machine()
    calls = {name: machine.peer(name) for name in ("a", "b")}
    found = after_pause(calls, 3.0, 2, sleep=machine.sleep, clock=machine.clock)
    assert found == {"a": 3.0, "b": 3.0}
    assert machine.log == ["a", "a", "sleep", "a", "b", "b", "sleep", "b"] * 2


def test_without_a_pause_no_one_sleeps() -> None:
    machine = Machine()
    assert after_pause({"a": machine.peer("a")}, 0.0, 3, sleep=machine.sleep, clock=machine.clock) == {"a": 1.0}
    assert "sleep" not in machine.log


def test_others_are_called_in_turn_before_each_sample() -> None:
    machine = Machine()
    calls = {name: machine.peer(name) for name in "abc"}
    assert after_another(calls, 2, clock=machine.clock) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert machine.log == [*"ba", *"ab", *"ac", *"ca", *"cb", *"bc"]


def test_a_peer_alone_has_no_others() -> None:
    machine = Machine()
    after_another({"a": machine.peer("a")}, 2, clock=machine.clock)
    assert machine.log == ["a", "a"]


def test_the_table_shows_every_pause_and_what_failed() -> None:
    entries = (Entry("a", "Peer A"), Entry("b", "Peer B", failure="not installed: x"))
    run = idle.IdleRun("net", (1, 3), 2, entries, {"a": {0.0: 1e-3, 100.0: 2e-3}}, {"a": 3e-3})
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(idle.table(run))
    text = capture.get()
    assert "net, input [1, 3], 2 threads" in text
    for cell in ("no pause", "100 ms", "another peer", "1.00 ms", "2.00 ms", "3.00 ms", "Peer B: not installed: x"):
        assert cell in text


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_command_runs_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        idle.main(["--models", "squeezenet1_1", "--peers", "eager", "--pauses", "1", "--rounds", "1", "--threads", "1"])
    finally:
        torch.set_num_threads(before)
    out = capsys.readouterr().out
    assert "squeezenet1_1" in out
    assert "PyTorch eager" in out
