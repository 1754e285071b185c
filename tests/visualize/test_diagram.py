"""Diagrams in a notebook."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import graphviz
import pytest
import torch
from torch import fx, nn

from fxq.ir import GraphSnapshot, diff
from fxq.visualize import diagram, to_dot


def test_a_diagram_is_a_digraph_with_the_same_source(before: GraphSnapshot, after: GraphSnapshot) -> None:
    changes = diff(before, after)
    d = diagram(after, changes=changes, side="after", title="t")
    assert isinstance(d, graphviz.Digraph)
    assert d.source == to_dot(after, changes=changes, side="after", title="t")


def test_a_graph_module_is_left_as_it_was() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()))
    meta = [dict(n.meta) for n in gm.graph.nodes]
    own, code = dict(gm.meta), gm.code
    source = diagram(gm).source
    assert "3 → 4 · kernel 1×1" in source
    assert [dict(n.meta) for n in gm.graph.nodes] == meta
    assert (gm.meta, gm.code) == (own, code)
    assert torch.equal(gm(torch.ones(1, 3, 2, 2)), gm(torch.ones(1, 3, 2, 2)))


def test_a_notebook_shows_svg(before: GraphSnapshot, dot: str) -> None:
    bundle = diagram(before)._repr_mimebundle_()
    assert "</svg>" in str(bundle["image/svg+xml"])
    assert str(bundle["text/plain"]).startswith("graph CANONICAL:")


@pytest.mark.usefixtures("no_dot")
def test_a_notebook_without_dot_shows_text(before: GraphSnapshot) -> None:
    bundle = diagram(before)._repr_mimebundle_()
    assert list(bundle) == ["text/plain"]
    assert str(bundle["text/plain"]).startswith("[the program `dot` is not installed")
    assert "%layer1_0_conv = conv2d[layer1.0.conv](%x)" in str(bundle["text/plain"])


def test_a_notebook_does_not_wait_for_a_stuck_dot(before: GraphSnapshot, fake_dot: Callable[[str], Path]) -> None:
    fake_dot("exec sleep 30")
    d = diagram(before)
    d.timeout_s = 0.5
    start = time.monotonic()
    assert list(d._repr_mimebundle_()) == ["text/plain"]
    assert time.monotonic() - start < 3.0


def test_include_and_exclude(before: GraphSnapshot) -> None:
    d = diagram(before)
    assert list(d._repr_mimebundle_(include=["text/plain"])) == ["text/plain"]
    assert d._repr_mimebundle_(include=["text/plain"], exclude=["text/plain"]) == {}
