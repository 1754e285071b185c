"""The diagrams of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import fx, nn

from fxq.errors import InputError, PassError
from fxq.ir import GraphSnapshot, Rewriter
from fxq.manager import Pass, PassContext, PassManager, PassRecord
from fxq.passes.fold_batch_norm import FoldBatchNorm
from fxq.visualize import DiagramWriter


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def unchanged(record: PassRecord, name: str) -> PassRecord:
    return replace(record, name=name, after=record.before)


def test_files_in_the_order_of_the_pipeline(record: PassRecord, tmp_path: Path, dot: str) -> None:
    writer = DiagramWriter(tmp_path / "a" / "b")
    for r in (unchanged(record, "canonicalise"), record, replace(record, name="fuse/twice"), record):
        writer(r)
    stems = ["00-trace"]
    for pass_name in ("02-fold_batch_norm", "03-fuse-twice", "04-fold_batch_norm"):
        stems += [f"{pass_name}.before", f"{pass_name}.after"]
    assert [p.name for p in writer.paths] == [f"{s}.{kind}" for s in stems for kind in ("dot", "svg")]
    assert names(writer.directory) == sorted(p.name for p in writer.paths)
    assert writer.notes == []


def test_what_stands_in_them(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path, formats=("dot",))
    writer(record)
    trace, before, after = (p.read_text(encoding="utf-8") for p in writer.paths)
    assert "<b>trace</b>" in trace
    assert "removed" not in trace
    assert "<b>01 fold_batch_norm — before</b>" in before
    assert "- 3 removed" in before
    assert "+ 1 added" in after


def test_the_same_bytes_twice(record: PassRecord, tmp_path: Path) -> None:
    runs = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        DiagramWriter(folder, formats=())(record)
        runs.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert runs[0] == runs[1]


def test_a_directory_that_cannot_be_is_an_error_at_once(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    for directory in (blocker, blocker / "inside"):
        with pytest.raises(InputError, match=r"cannot be written there\n  where: .*file"):
            DiagramWriter(directory)
    with pytest.raises(InputError, match="7 is no path"):
        DiagramWriter(7)  # type: ignore[arg-type]


def test_a_directory_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the user may do everything, as root may: opening the trial file fails."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="PermissionError: Permission denied"):
        DiagramWriter(tmp_path)


def test_wrong_options_create_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no format 'gif'"):
        DiagramWriter(tmp_path / "out", formats=("gif",))
    with pytest.raises(InputError, match="timeout_s is 0"):
        DiagramWriter(tmp_path / "out", timeout_s=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_dot")
def test_no_dot(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path)
    writer(record)
    writer(record)
    assert {p.suffix for p in writer.paths} == {".dot"}
    assert len(writer.paths) == 5
    assert len(writer.notes) == 1
    assert "`dot` is not installed" in writer.notes[0]


def test_the_budget_holds_for_the_whole_run(
    record: PassRecord, tmp_path: Path, fake_dot: Callable[[str], Path]
) -> None:
    fake_dot("exec sleep 30")
    writer = DiagramWriter(tmp_path / "out", timeout_s=0.4, budget_s=1.0)
    start = time.monotonic()
    for _ in range(6):
        writer(record)
    assert time.monotonic() - start < 4.0
    assert [p.suffix for p in writer.paths] == [".dot"] * 13
    assert "00-trace: no svg: `dot` took longer than" in writer.notes[0]
    assert writer.notes[-1] == "no more pictures, only DOT: the time for pictures is used up"
    assert len(writer.notes) < 6


def test_a_layout_that_was_quick_enough_is_kept(
    record: PassRecord, tmp_path: Path, fake_dot: Callable[[str], Path]
) -> None:
    log = fake_dot('case "$*" in *splines=line*) echo fast >> "$log"; echo picture;; '
                   '*) echo full >> "$log"; exec sleep 30;; esac')  # fmt: skip
    writer = DiagramWriter(tmp_path / "out", timeout_s=2.0)
    writer(record)
    assert log.read_text().split() == ["full", "fast", "fast", "fast"]


def test_a_large_dense_graph_ends_in_time(
    dense_net: Callable[[int, int], GraphSnapshot], tmp_path: Path, dot: str
) -> None:
    snapshot = dense_net(6, 25)
    assert len(snapshot) > 1000
    writer = DiagramWriter(tmp_path, timeout_s=3.0)
    start = time.monotonic()
    writer(PassRecord("p", "P()", "EXACT", snapshot, snapshot))
    assert time.monotonic() - start < 8.0
    assert (tmp_path / "00-trace.dot").stat().st_size > 100_000
    assert (tmp_path / "00-trace.svg").exists() or writer.notes


def test_a_pass_that_failed_before_it_changed_anything(record: PassRecord, tmp_path: Path) -> None:
    error = "the pass `p` failed: KeyError: 'x'\n  where: node `add`, module `layer1.0`"
    writer = DiagramWriter(tmp_path, formats=("dot",))
    writer(replace(unchanged(record, "p"), error=error))
    assert names(tmp_path) == ["00-trace.dot", "01-p.failed.dot"]
    source = (tmp_path / "01-p.failed.dot").read_text(encoding="utf-8")
    assert "! 1 failed here" in source
    assert "01 p — the pass `p` failed: KeyError: 'x'" in source


def test_a_pass_that_did_not_verify(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path, formats=("dot",))
    writer(replace(record, error="promises EXACT\n  where: node `scale`, module `the root`"))
    assert names(tmp_path) == ["00-trace.dot", "01-fold_batch_norm.before.dot", "01-fold_batch_norm.failed.dot"]
    source = (tmp_path / "01-fold_batch_norm.failed.dot").read_text(encoding="utf-8")
    assert "! 1 failed here" in source
    assert "~ 3 changed" in source


def test_a_failure_without_a_node(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path, formats=("dot",))
    writer(replace(unchanged(record, "p"), error="the pass `p` takes a QDQ graph"))
    assert "failed here" not in (tmp_path / "01-p.failed.dot").read_text(encoding="utf-8")


def test_no_picture_of_an_earlier_run_stays(record: PassRecord, tmp_path: Path) -> None:
    (tmp_path / "00-trace.svg").write_text("old")
    (tmp_path / "mine.svg").write_text("mine")
    DiagramWriter(tmp_path, formats=("dot",))(unchanged(record, "p"))
    assert names(tmp_path) == ["00-trace.dot", "mine.svg"]


def test_a_disk_that_fails_on_the_way_is_a_note(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path / "out", formats=("dot",))
    (tmp_path / "out").rmdir()
    writer(record)
    assert writer.paths == []
    assert [n.partition(":")[0] for n in writer.notes] == [
        "00-trace", "01-fold_batch_norm.before", "01-fold_batch_norm.after",
    ]  # fmt: skip


def test_names_that_no_file_can_have(record: PassRecord, tmp_path: Path) -> None:
    writer = DiagramWriter(tmp_path, formats=("dot",))
    writer(replace(record, name="../up: größe*?" + "x" * 300))
    assert all(p.parent == tmp_path and len(p.name) < 120 for p in writer.paths)
    assert writer.notes == []
    assert writer.paths[1].name.startswith("01-..-up__gr__e__xxx")


@dataclass(frozen=True)
class Break(Pass):
    """Fails while it rewrites the first activation."""

    name: ClassVar[str] = "break"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        for call in rw.calls():
            if call.kind == "relu":
                with rw.rule("break_relu", call.node):
                    raise KeyError("on purpose")


def test_a_run_of_the_pass_manager(tmp_path: Path) -> None:
    """Folding changes the graph, the second pass fails: the diagrams say at which node."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    writer = DiagramWriter(tmp_path, formats=("dot",))
    with pytest.raises(PassError, match="on purpose"):
        PassManager([FoldBatchNorm(), Break()])(fx.symbolic_trace(net), torch.randn(1, 3, 6, 6), on_pass=writer)
    assert names(tmp_path) == [
        "00-trace.dot", "01-fold_batch_norm.after.dot", "01-fold_batch_norm.before.dot", "02-break.failed.dot",
    ]  # fmt: skip
    assert "- 1 removed" in (tmp_path / "01-fold_batch_norm.before.dot").read_text(encoding="utf-8")
    failed = (tmp_path / "02-break.failed.dot").read_text(encoding="utf-8")
    culprit = next(line for line in failed.splitlines() if "<b>!</b>" in line)
    assert "relu" in culprit
