"""Which family of operations a node is drawn in."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxq.ir import NodeRecord
from fxq.visualize.palette import family

FAMILIES = {
    "Conv2d": "layer", "QConv2d": "int8", "Segment": "int8", "DynamicLinear": "int8", "DynamicRecurrent": "int8",
    "DynamicCell": "int8", "Weight4Linear": "qdq", "Weight8Linear": "qdq", "QDQConv2d": "qdq", "Quantize": "quantise",
    "HistogramObserver": "observer",
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_of_modules(kind: str, node: Callable[..., NodeRecord]) -> None:
    assert family(node(1, "layer", kind, op="call_module", digest=1)) == FAMILIES[kind]
