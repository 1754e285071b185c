"""Marks: what was added, removed and changed, and by which rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fxq.ir import GraphSnapshot, NodeRecord, Stage, diff
from fxq.visualize import to_dot
from fxq.visualize.changes import read_changes


def line_of(source: str, id: int) -> str:
    return next(line for line in source.splitlines() if line.strip().startswith(f"n{id} ["))


def test_removed_nodes(before: GraphSnapshot, after: GraphSnapshot) -> None:
    line = line_of(to_dot(before, changes=diff(before, after), side="before"), 2)
    assert "<b>-</b>" in line
    assert "dashed" in line
    assert 'color="#c4222c"' in line
    assert "now part of layer1_0_conv" in line


def test_added_nodes(before: GraphSnapshot, after: GraphSnapshot) -> None:
    line = line_of(to_dot(after, changes=diff(before, after), side="after"), 11)
    assert "<b>+</b>" in line
    assert 'color="#17803a"' in line
    assert "by as_scale from mul" in line


@pytest.mark.parametrize("side", ["before", "after"])
def test_changed_nodes(side: str, before: GraphSnapshot, after: GraphSnapshot) -> None:
    source = to_dot({"before": before, "after": after}[side], changes=diff(before, after))
    conv, add = line_of(source, 1), line_of(source, 3)
    assert "<b>~</b>" in conv
    assert 'color="#a86400"' in conv
    for words in ("no longer bias=False", "weights changed", "by fold_conv from layer1_0_bn"):
        assert words in conv
    assert "reads layer1_0_conv, not layer1_0_bn" in add


def test_what_did_not_change_is_not_marked(before: GraphSnapshot, after: GraphSnapshot) -> None:
    plain, marked = to_dot(after), to_dot(after, changes=diff(before, after))
    assert line_of(plain, 4) == line_of(marked, 4)
    assert all(f"<b>{glyph}" not in plain for glyph in "+-~")


def test_the_title_counts(before: GraphSnapshot, after: GraphSnapshot) -> None:
    changes = diff(before, after)
    assert "- 3 removed" in to_dot(before, changes=changes)
    source = to_dot(after, changes=changes, title="pass", side="after")
    assert "<b>pass — after</b>" in source
    assert "+ 1 added" in source
    assert "~ 3 changed" in source


def test_edges_follow(before: GraphSnapshot, after: GraphSnapshot) -> None:
    changes = diff(before, after)
    old, new = to_dot(before, changes=changes), to_dot(after, changes=changes)
    assert 'n1 -> n2 [color="#c4222c"' in old
    assert 'n1 -> n3 [color="#a86400"' in new
    assert 'n7 -> n11 [color="#17803a"' in new
    assert "n3 -> n4 [weight=6]" in new


def test_a_marked_constant_shows_in_its_reader(before: GraphSnapshot) -> None:
    nodes = [replace(n, digest=123) if n.name == "table" else n for n in before.nodes]
    other = GraphSnapshot(Stage.CANONICAL, tuple(nodes))
    assert "~ with table" in line_of(to_dot(other, changes=diff(before, other)), 9)


def test_marked_size_arithmetic_shows_in_its_reader(before: GraphSnapshot) -> None:
    nodes = [replace(n, args="%layer1_1_relu, 1") if n.name == "size" else n for n in before.nodes]
    other = GraphSnapshot(Stage.CANONICAL, tuple(nodes))
    assert "~ with layer1_1_relu.size(1) int" in line_of(to_dot(other, changes=diff(before, other)), 7)


def test_another_spelling_is_one_note(node: Callable[..., NodeRecord]) -> None:
    module = node(0, "pool", "max_pool2d", op="call_module", target="pool", details="kernel_size=3, stride=2")
    function = replace(module, op="call_function", target="max_pool2d", details="", args="%x, kernel_size=(3, 3)")
    old, new = (GraphSnapshot(Stage.FLOAT, (n,)) for n in (module, function))
    assert read_changes(new, diff(old, new)).notes[0] == ("module pool → function max_pool2d",)


def test_the_culprit_is_marked_over_its_change(before: GraphSnapshot, after: GraphSnapshot) -> None:
    line = line_of(to_dot(after, changes=diff(before, after), failed="add"), 3)
    assert "<b>!</b>" in line
    assert "penwidth=4" in line
    assert "<b>~</b>" not in line
