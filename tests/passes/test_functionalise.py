from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import graph_text, identify, take_snapshot
from fxq.ir.aliasing import sharing
from fxq.ir.identify import Identifier
from fxq.manager.base import PassResult
from fxq.passes.functionalise import Functionalise
from fxq.tracing import trace
from tests.conftest import Golden
from tests.passes.conftest import RunPass


class Applies(nn.Module):
    """Runs a function; layers that it needs are its submodules."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.register_buffer("count", torch.zeros(3))
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.function(self, x, y)


X, Y = torch.tensor([[1.0, -2.0, 0.5], [-1.5, 3.0, 0.25]]), torch.tensor([[2.0, 1.0, -1.0], [0.5, -0.5, 4.0]])
LARGER = (torch.randn(5, 3), torch.randn(5, 3))


def written_in_place(result: PassResult) -> list[str]:
    gm = result.graph_module
    return [n.name for n in gm.graph.nodes if n.op.startswith("call_") and identify(n, gm).inplace]


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


SPELLINGS: dict[str, Callable[..., Any]] = {
    "method": lambda m, x, y: x.relu_() * y,
    "function with underscore": lambda m, x, y: F.leaky_relu_(x, 0.1) * y,
    "inplace=True": lambda m, x, y: F.hardtanh(x, 0.0, 1.0, inplace=True) * y,
    "torch function": lambda m, x, y: torch.sigmoid_(x) * y,
    "operator": lambda m, x, y: operator.iadd(x, y) * y,
    "power": lambda m, x, y: operator.ipow(x, 2) * y,
    "clamp": lambda m, x, y: x.clamp_(min=0) * y,
    "multiply by a number": lambda m, x, y: x.mul_(2).sub_(y, alpha=3) * y,
    "masked fill": lambda m, x, y: x.masked_fill_(y > 0, 1.5) * y,
    "lerp": lambda m, x, y: x.lerp_(y, 0.5) * y,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str, run_pass: RunPass) -> None:
    result = run_pass(Functionalise(), Applies(SPELLINGS[spelling]), (X, Y), LARGER)
    assert result.matched
    assert not result.refused
    assert not any(str(n.target).endswith("_") for n in result.graph_module.graph.nodes)


@pytest.mark.parametrize(
    "layer", [nn.ReLU(inplace=True), nn.SiLU(True), nn.Hardtanh(inplace=True), nn.Dropout(0.5, True)]
)
def test_modules(layer: nn.Module, run_pass: RunPass) -> None:
    model = Applies(lambda m, x, y: m.layer(x + y) * y, layer=layer)
    result = run_pass(Functionalise(), model, (X, Y), LARGER)
    assert [m.nodes for m in result.matched] == [("layer",)]


def test_golden(golden: Golden, run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor) -> Any:
        a = m.linear(x)
        b = a * 2
        a = m.relu(a)
        a += b
        return a, b

    model = Applies(function, linear=nn.Linear(3, 3), relu=nn.ReLU(inplace=True))
    result = run_pass(Functionalise(), model, (X, Y), LARGER)
    golden("functionalise", graph_text(take_snapshot(result.graph_module)))
    assert [m.rule for m in result.matched] == ["out_of_place"] * 2
    assert [c.after.name for c in result.record.diff.changed] == ["relu", "iadd"]
    assert not result.record.diff.added
    assert not result.record.diff.removed


# -- who reads what -----------------------------------------------------------------------------------------------


def earlier_and_later(m: Any, x: Tensor, y: Tensor) -> Any:
    before = x + y
    x.relu_()
    return before, x * y, x


def twice(m: Any, x: Tensor, y: Tensor) -> Any:
    a = x.add_(1)
    b = x * 1
    x.mul_(3)
    return a + b, x


def result_unused(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z.add_(1)
    z.add_(2)
    return z


def through_its_own_view(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z.relu_()
    v = z.view(-1, 3)
    return v + 1


def view_forgotten_before(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    w = z.view(-1).sum()
    z.relu_()
    return z + w


def view_written(m: Any, x: Tensor, y: Tensor) -> Any:
    return (x * y).view(-1).relu_()


def with_itself(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z.add_(z)
    return z


def in_the_other_operand(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z.add_(torch.relu(z))
    return z


def half_of_a_chunk(m: Any, x: Tensor, y: Tensor) -> Any:
    a = torch.cat([x, y], 1).chunk(2, 1)[0]
    return a.relu_()


def after_a_dropout(m: Any, x: Tensor, y: Tensor) -> Any:
    z = F.dropout(x * y, training=False)
    return z.relu_()


FLOWS = {
    f.__name__: f
    for f in (earlier_and_later, twice, result_unused, through_its_own_view, view_forgotten_before, view_written,
              with_itself, in_the_other_operand, half_of_a_chunk, after_a_dropout)
}  # fmt: skip


@pytest.mark.parametrize("flow", FLOWS)
def test_later_readers_read_the_result(flow: str, run_pass: RunPass) -> None:
    result = run_pass(Functionalise(), Applies(FLOWS[flow]), (X, Y), LARGER)
    assert result.matched
    assert not result.refused
    assert not written_in_place(result)


def test_the_callers_input_is_no_longer_overwritten(run_pass: RunPass) -> None:
    result = run_pass(Functionalise(), Applies(earlier_and_later), (X, Y))
    x, y = X.clone(), Y.clone()
    result.graph_module(x, y)
    assert torch.equal(x, X)


# -- traps --------------------------------------------------------------------------------------------------------


def view_read_later(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v = z.view(-1)
    z.relu_()
    return v


def base_read_later(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z.view(-1).relu_()
    return z


def sibling_view(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v, w = z[:, 0], z.t()
    v.relu_()
    return w + 1


def view_of_a_view(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v = z.unsqueeze(0).flatten(1).squeeze(0)
    z.relu_()
    return v + 1


def chunk_read_later(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    parts = z.chunk(3, 1)
    z.relu_()
    return parts[0]


def identity_read_later(m: Any, x: Tensor, y: Tensor) -> Any:
    z = m.identity(x * y)
    v = m.flat(z)
    z.relu_()
    return v + 1


def through_the_tables_gaps(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v = z.expand(2, 2, 3)
    z.relu_()
    return v + 1


def converted(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v = z.to(torch.float32)
    z.relu_()
    return v + 1


def dropped_out(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    v = F.dropout(z, training=False)
    z.relu_()
    return v + 1


def read_by_itself(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x[:2, :2] * 1
    v = z.view(-1)
    z.add_(v.view(2, 2))
    return z


TRAPS = {
    "view_read_later": (view_read_later, "`view` may share the memory that it writes into, and is returned"),
    "base_read_later": (base_read_later, "`mul` may share the memory that it writes into, and is returned"),
    "sibling_view": (sibling_view, "`t` may share the memory that it writes into, and is read later, by `add`"),
    "view_of_a_view": (view_of_a_view, "is read later, by `add`"),
    "chunk_read_later": (chunk_read_later, "is read later, by `getitem`"),
    "identity_read_later": (identity_read_later, "`flat` may share the memory"),
    "through_the_tables_gaps": (through_the_tables_gaps, "`expand` may share the memory"),
    "converted": (converted, "`to` may share the memory"),
    "dropped_out": (dropped_out, "`dropout` may share the memory"),
    "read_by_itself": (read_by_itself, "`view_1` may share the memory that it writes into, and is read by `add_`"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_refused_where_another_value_shares_the_memory(trap: str, run_pass: RunPass) -> None:
    function, reason = TRAPS[trap]
    model = Applies(function, identity=nn.Identity(), flat=nn.Flatten())
    result = run_pass(Functionalise(), model, (X, Y))
    assert not result.modified
    assert len(result.refused) == 1
    assert reason in result.refused[0].reason


def buffer_written(m: Any, x: Tensor, y: Tensor) -> Any:
    m.count.add_(1)
    return x + m.count


def half_plus_float(m: Any, x: Tensor, y: Tensor) -> Any:
    return x.half().relu().add_(y).float()


def element_set(m: Any, x: Tensor, y: Tensor) -> Any:
    z = x * y
    z[0] = 1.0
    return z


def filled(m: Any, x: Tensor, y: Tensor) -> Any:
    return (x * y).fill_(1.0)


OTHER_REFUSALS = {
    "buffer_written": (buffer_written, "it writes into `count`, an attribute of the model"),
    "half_plus_float": (half_plus_float, "`relu` is torch.float16 and `y` torch.float32: a new tensor could be either"),
    "element_set": (element_set, "fxq knows no operation that computes what `setitem` writes"),
    "filled": (filled, "fxq knows no operation that computes what `fill_` writes"),
}


@pytest.mark.parametrize("refusal", OTHER_REFUSALS)
def test_refused(refusal: str, run_pass: RunPass) -> None:
    function, reason = OTHER_REFUSALS[refusal]
    result = run_pass(Functionalise(), Applies(function), (X, Y))
    assert not result.modified
    assert reasons(result) == [reason]


def test_refused_where_opaque_code_had_the_tensor() -> None:
    def function(m: Any, x: Tensor, y: Tensor) -> Any:
        z = x * y
        w = m.hooked(z)
        return z.relu_() + w

    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    result = Functionalise()(trace(Applies(function, hooked=hooked), (X, Y)))
    assert reasons(result) == ["`hooked` may hold the memory that it writes into"]


def test_refused_for_dropout_in_training_mode() -> None:
    model = Applies(lambda m, x, y: m.drop(x * y), drop=nn.Dropout(inplace=True)).train()
    result = Functionalise()(trace(model, (X, Y)))
    assert reasons(result) == ["it draws random numbers, in training mode"]


# -- dtypes and numbers -------------------------------------------------------------------------------------------


def test_dtypes_come_from_weights_where_no_run_was_recorded() -> None:
    def function(m: Any, x: Tensor, y: Tensor) -> Any:
        a = F.relu(m.linear(x)) + m.linear(y)
        a += m.linear(x)
        x += y
        return a, x

    result = Functionalise()(trace(Applies(function, linear=nn.Linear(3, 3))))
    assert len(result.matched) == 1
    assert reasons(result) == ["the dtypes of `x` and `y` are not known without example inputs"]


def test_numbers_are_no_tensors(run_pass: RunPass) -> None:
    def function(m: Any, x: Tensor, y: Tensor) -> Any:
        n = x.size(0)
        k = n
        n += 1
        n *= 2
        return x.new_zeros(n), y.new_zeros(k)

    result = run_pass(Functionalise(), Applies(function), (X, Y), LARGER)
    assert not result.modified
    assert not result.matched
    assert not result.refused


def test_operators_that_overwrite_nothing_are_written_plainly() -> None:
    """A graph that another tracer made may hold them; the code that torch.fx generates for it would go wrong."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    n = graph.call_method("size", (x, 0))
    more = graph.call_function(operator.iadd, (n, 1))
    half = graph.call_function(operator.ifloordiv, (more, 2))
    turned = graph.call_method("t", (x,))
    product = graph.call_function(operator.imatmul, (x, turned))
    graph.output((n, more, half, x, product))
    gm = fx.GraphModule(nn.Module(), graph)

    out, record = Functionalise()(gm)
    assert [m.rule for m in record.matched] == ["plain_operator"] * 3
    n, more, half, same, product = out(X)
    assert (n, more, half) == (2, 3, 1)
    assert torch.equal(same, X)
    assert torch.equal(product, X @ X.t())
    assert not Functionalise()(out).modified


def test_traced_numbers_and_products_are_plain(run_pass: RunPass) -> None:
    def matrix(m: Any, x: Tensor, y: Tensor) -> Any:
        z = x
        z @= y.t()
        return z, x

    assert not run_pass(Functionalise(), Applies(matrix), (X, Y), LARGER).matched


def test_sharing_does_not_cross_operations_that_give_new_memory() -> None:
    gm = trace(Applies(lambda m, x, y: torch.cat([x.view(-1), y.view(-1)]).relu()), (X, Y))
    nodes = {n.name: n for n in gm.graph.nodes}
    assert {n.name for n in sharing(nodes["x"], Identifier(gm))} == {"x", "view"}


def test_aliasing_matters_for_the_values(run_pass: RunPass) -> None:
    """A control: what the refusals protect is a difference that the comparison sees."""
    gm = trace(Applies(view_read_later), (X, Y))
    node = next(n for n in gm.graph.nodes if n.target == "relu_")
    node.target = "relu"
    gm.recompile()
    assert not torch.equal(gm(X.clone(), Y.clone()), Applies(view_read_later)(X.clone(), Y.clone()))
