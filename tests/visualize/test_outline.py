"""Outlines of graphs that are too large to draw whole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from fxq.ir import GraphSnapshot, diff
from fxq.visualize import to_dot


def boxes(source: str) -> list[str]:
    return re.findall(r"^\s*(\w+) \[label=", source, re.MULTILINE)


def test_whole_modules_become_single_boxes(dense_net: Callable[[int, int], GraphSnapshot]) -> None:
    snapshot = dense_net(6, 25)
    source = to_dot(snapshot, outline=True)
    assert len(snapshot) > 1000
    assert len(boxes(source)) < 20
    assert "<b>features.block3</b>" in source
    assert "175 nodes" in source
    assert len(re.findall(r"->", source)) < 20


def test_modules_are_closed_no_further_than_it_takes(dense_net: Callable[[int, int], GraphSnapshot]) -> None:
    source = to_dot(dense_net(2, 4), outline=True)
    assert "<b>features.block1.layer3</b>" in source
    assert source.count("subgraph") == 3


def test_marks_are_counted_at_the_module(dense_net: Callable[[int, int], GraphSnapshot]) -> None:
    before = dense_net(6, 25)
    after = replace(
        before, nodes=tuple(replace(n, digest=n.digest + 1) if "block2" in n.name else n for n in before.nodes)
    )
    source = to_dot(after, changes=diff(before, after), outline=True)
    line = next(line for line in source.splitlines() if "<b>features.block2</b>" in line)
    assert "~ 150 changed" in line
    assert source.count("150 changed") == 2  # the module's box and the title


def test_a_graph_without_modules_stays_as_it_is(before: GraphSnapshot) -> None:
    flat = replace(before, nodes=tuple(replace(n, module_path="") for n in before.nodes))
    assert boxes(to_dot(flat, outline=True)) == boxes(to_dot(flat))
