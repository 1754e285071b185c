"""The program ``dot``: there, missing, failing, slow."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fxq.errors import InputError
from fxq.ir import GraphSnapshot
from fxq.visualize import render, to_dot
from fxq.visualize.render import write_atomically

FakeDot = Callable[[str], Path]


def test_pictures(before: GraphSnapshot, tmp_path: Path, dot: str) -> None:
    result = render(to_dot(before), tmp_path / "block", ("svg", "png"))
    assert result.paths == (tmp_path / "block.svg", tmp_path / "block.png")
    assert (result.step, result.note) == ("full", "")
    assert result.paths[0].read_bytes().startswith(b"<?xml")
    assert result.paths[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_dot")
def test_no_dot(tmp_path: Path) -> None:
    result = render("digraph {}", tmp_path / "g")
    assert result.paths == ()
    assert result.step is None
    assert "`dot` is not installed" in result.note
    assert list(tmp_path.iterdir()) == []


def test_a_dot_that_sleeps_is_stopped_in_time(tmp_path: Path, fake_dot: FakeDot) -> None:
    log = fake_dot('sleep 30 & echo $! >> "$log"; wait')
    start = time.monotonic()
    result = render("digraph {}", tmp_path / "g", timeout_s=1.0)
    assert time.monotonic() - start < 3.0
    assert result.paths == ()
    assert "took longer than" in result.note
    assert not (tmp_path / "g.svg").exists()
    children = [int(pid) for pid in log.read_text().split()]
    assert len(children) == 2
    assert not any(map(_runs, children))


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie; a killed child may take a moment to be reaped by init."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


def test_a_dot_that_reads_nothing_is_stopped_in_time(tmp_path: Path, fake_dot: FakeDot) -> None:
    fake_dot("exec sleep 30")
    start = time.monotonic()
    result = render("x" * 5_000_000, tmp_path / "g", timeout_s=0.6)
    assert time.monotonic() - start < 3.0
    assert result.step is None


def test_the_fast_layout_comes_second(tmp_path: Path, fake_dot: FakeDot) -> None:
    log = fake_dot('echo "$@" >> "$log"; case "$*" in *splines=line*) echo picture;; *) exec sleep 30;; esac')
    result = render("digraph {}", tmp_path / "g", timeout_s=2.0)
    assert result.step == "fast"
    assert "the layout is fast" in result.note
    assert (tmp_path / "g.svg").read_text() == "picture\n"
    assert len(log.read_text().splitlines()) == 2


def test_the_outline_comes_last(tmp_path: Path, fake_dot: FakeDot) -> None:
    fake_dot("if grep -q simple; then echo picture; else exec sleep 30; fi")
    result = render("digraph {}", tmp_path / "g", timeout_s=2.0, simpler=lambda: "digraph simple {}")
    assert result.step == "outline"


def test_one_limit_for_all_formats(tmp_path: Path, fake_dot: FakeDot) -> None:
    fake_dot("exec sleep 30")
    start = time.monotonic()
    result = render("digraph {}", tmp_path / "g", ("svg", "png", "pdf"), timeout_s=0.8)
    assert time.monotonic() - start < 3.0
    assert result.note.count("no ") >= 3


def test_a_failing_dot_is_a_note(tmp_path: Path, fake_dot: FakeDot) -> None:
    fake_dot("cat > /dev/null; echo 'trouble in init_rank' >&2; exit 3")
    result = render("digraph {}", tmp_path / "g")
    assert result.note == "no svg: `dot` failed with exit status 3: trouble in init_rank"


def test_a_broken_dot_is_a_note(tmp_path: Path, fake_dot: FakeDot) -> None:
    program = fake_dot("").with_name("dot")
    program.write_bytes(b"\x00 not a program")
    assert "does not start" in render("digraph {}", tmp_path / "g").note


def test_source_that_is_no_dot(tmp_path: Path, dot: str) -> None:
    result = render("digraph {", tmp_path / "g")
    assert result.paths == ()
    assert "syntax error" in result.note


def test_unknown_format_and_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no format 'svgg'[\s\S]*did you mean 'svg'"):
        render("digraph {}", tmp_path / "g", ("svgg",))
    with pytest.raises(InputError, match="no layout 'quick'"):
        render("digraph {}", tmp_path / "g", start="quick")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "g.svg"
    target.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["g.svg"]
    assert target.read_bytes() == b"old"
