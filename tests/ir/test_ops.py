"""The table of operations holds together, and its canonical calls compute what the spellings compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import identify
from fxq.ir.ops import (
    DROPOUTS,
    FUNCTIONS,
    FUSABLE_ACTIVATIONS,
    METHODS,
    MOVES,
    REQUIRED,
    SPECS,
    STATEFUL_MODULES,
    STATELESS_MODULES,
    is_finite_number,
)
from fxq.ir.scalars import is_number, is_scalar, is_shape
from fxq.passes.graph.spelling import canonical_call, is_spelled
from fxq.tracing import trace
from tests.ir.spellings import BINARY, IMAGE, UNARY, Calls, Spelling


def run(spelling: Spelling, *inputs: Tensor) -> tuple[Any, Any]:
    """Return what ``spelling`` gives and what the canonical call of its last operation gives, seeded alike."""
    gm = trace(Calls(spelling), inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = gm(*inputs)
    node = [n for n in gm.graph.nodes if n.op.startswith("call_")][-1]
    function, args, kwargs = canonical_call(identify(node, gm))
    node.op, node.target, node.args, node.kwargs = "call_function", function, args, kwargs
    gm.graph.lint()
    gm.recompile()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return expected, gm(*inputs)


@pytest.mark.parametrize("kind", UNARY)
def test_the_canonical_call_computes_the_same(kind: str) -> None:
    for spelling in UNARY[kind]:
        expected, actual = run(spelling, IMAGE)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", BINARY)
def test_the_canonical_call_of_two_inputs_computes_the_same(kind: str) -> None:
    for spelling in BINARY[kind]:
        expected, actual = run(spelling, torch.rand(3, 3) + 1, torch.rand(3, 3) + 1)
        assert torch.equal(actual, expected)


def test_attributes_that_have_no_default_are_required() -> None:
    for kind, spec in SPECS.items():
        assert spec.kind == kind
        assert len(dict(spec.attrs)) == len(spec.attrs)
    assert dict(SPECS["permute"].attrs)["dims"] is REQUIRED


def test_every_entry_names_an_operation_of_the_table() -> None:
    assert {kind for kind, _ in FUNCTIONS.values()} <= set(SPECS)
    assert {kind for kind, _ in METHODS.values()} <= set(SPECS)
    assert {kind for kind, _, _ in STATELESS_MODULES.values()} <= set(SPECS)
    assert not set(STATEFUL_MODULES.values()) & set(SPECS)
    assert set(FUSABLE_ACTIVATIONS) <= set(SPECS)
    assert set(MOVES) <= set(SPECS)
    assert set(DROPOUTS) <= set(SPECS)


def test_every_attribute_of_a_module_spelling_exists() -> None:
    for module, (kind, names, fixed) in STATELESS_MODULES.items():
        assert set(names) | set(fixed) <= {name for name, _ in SPECS[kind].attrs}, module
        assert isinstance(module, type)
        assert issubclass(module, nn.Module)


def test_every_method_is_one_of_the_tensors() -> None:
    assert [m for m in METHODS if not hasattr(Tensor, m)] == []
    assert [m for m, (_, spelling) in METHODS.items() if spelling.inplace != m.endswith("_")] == []


def test_a_pools_attributes_have_its_number_of_dimensions() -> None:
    values = SPECS["max_pool2d"].normalise({"kernel_size": 3, "stride": None, "padding": [1], "dilation": (2, 1)})
    assert values == {
        "kernel_size": (3, 3), "stride": (3, 3), "padding": (1, 1), "dilation": (2, 1), "ceil_mode": False,
    }  # fmt: skip


def test_is_spelled_tells_lists_from_tuples_and_numbers_from_truth() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.cat, ([x, x],), {"dim": 1})
    assert is_spelled(node, (torch.cat, ([x, x],), {"dim": 1}))
    assert not is_spelled(node, (torch.cat, ((x, x),), {"dim": 1}))
    assert not is_spelled(node, (torch.cat, ([x, x],), {"dim": True}))
    assert not is_spelled(node, (F.relu, ([x, x],), {"dim": 1}))


SIZES: dict[str, tuple[Callable[[Any], Any], bool, bool]] = {
    "a size": (lambda x: x.size(0), True, False),
    "all sizes": (lambda x: x.size(), False, True),
    "the shape": (lambda x: x.shape, False, True),
    "a part of the shape": (lambda x: x.shape[1:], False, True),
    "one of the shape": (lambda x: x.shape[1], True, False),
    "arithmetic": (lambda x: x.size(0) // 2 + x.dim(), True, False),
    "a dtype": (lambda x: x.dtype, False, False),
    "a number from a tensor": (lambda x: x.sum().item(), True, False),
}


@pytest.mark.parametrize("what", SIZES)
def test_what_is_no_tensor(what: str) -> None:
    function, number, shape = SIZES[what]
    node = list(fx.symbolic_trace(function).graph.nodes)[-2]
    assert is_scalar(node)
    assert is_number(node) == number
    assert is_shape(node) == shape


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x.relu(), lambda x: x[0], lambda x: x * x.size(0)])
def test_what_is_a_tensor(function: Callable[[Any], Any]) -> None:
    node = list(fx.symbolic_trace(function).graph.nodes)[-2]
    assert not is_scalar(node)
    assert not is_number(node)


def test_finite_numbers() -> None:
    assert [v for v in (0, -1.5, True, float("inf"), float("nan"), "1", None) if is_finite_number(v)] == [0, -1.5]
