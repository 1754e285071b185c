"""Networks that write into memory which other values see: segments keep the order, and views stay views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.engine.dissolve import dissolve
from fxq.engine.library import unavailable_reason
from fxq.ir.identify import Identifier
from fxq.ir.metrics import distance
from fxq.ir.shapes import run_recorded
from fxq.ir.writing_order import writing_order

needs_engine = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


class Writing(nn.Module):
    """Three convolutions, and what a function of them does in place."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def through_a_slice(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    y[:, :4].add_(1.0)
    y[:, 0] = 3.0
    return net.b(y) + y


def through_a_flat_view(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    flat = y.view(y.shape[0], -1)
    flat.mul_(net.b(y).flatten(1))
    return net.c(y), flat


def into_the_whole_of_a_view(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    turned = y.transpose(1, 2)
    y[:] = net.b(y)
    return turned.contiguous(), net.c(y)


def read_before_and_after(net: Any, x: Tensor) -> Any:
    y = net.b(net.a(x).relu())
    before = net.c(y)
    y[..., ::2] *= 0.5
    return before + net.c(y) + net.a(x)


BODIES = [through_a_slice, through_a_flat_view, into_the_whole_of_a_view, read_before_and_after]


@pytest.mark.parametrize("target", ["reference", "onednn", pytest.param("native", marks=needs_engine)])
@pytest.mark.parametrize("body", BODIES)
def test_what_is_written_is_seen_by_all_who_share_it(body: Any, target: str, tmp_path: Path) -> None:
    if target == "onednn" and not fxq.nn.kernels.onednn_available():
        pytest.skip("this machine has no onednn kernels")
    torch.manual_seed(0)
    model, x = Writing(body).eval(), torch.randn(2, 3, 8, 8)
    gm = fxq.compile(model, x, calibration=[x], target=target)
    with torch.no_grad():
        wanted, found = model(x), gm(x)
        for float_one, one in zip(_all(wanted), _all(found), strict=True):
            assert distance(float_one, one).sqnr_db > 35
        fxq.save(gm, tmp_path / "writing.fxq")
        again = fxq.load(tmp_path / "writing.fxq")
        assert all(map(torch.equal, _all(again(x)), _all(found)))


class Unseen(nn.Module):
    """Code that cannot be traced, and that writes into what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) < float("inf"):
            x.mul_(0.25)
        return x.mean((2, 3))


def by_unseen_code(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    before = net.b(y)
    return net.unseen(y), before, net.c(y)


def by_unseen_code_through_a_view(net: Any, x: Tensor) -> Any:
    y = net.a(x)
    view = y[:, :, 1:]
    return net.unseen(y), net.c(view.relu())


def by_unseen_code_into_the_input(net: Any, x: Tensor) -> Any:
    return net.unseen(x), net.c(net.a(x))


@pytest.mark.parametrize("recipe", ["int8", "mixed"])
@pytest.mark.parametrize("body", [by_unseen_code, by_unseen_code_through_a_view, by_unseen_code_into_the_input])
def test_what_unseen_code_writes_is_seen_by_later_layers(body: Any, recipe: str) -> None:
    torch.manual_seed(0)
    model, x = Writing(body), torch.randn(2, 3, 8, 8)
    model.unseen = Unseen()
    gm = fxq.compile(model.eval(), x, calibration=[x], recipe=recipe)
    with torch.no_grad():
        for wanted, found in zip(_all(model(x.clone())), _all(gm(x.clone())), strict=True):
            assert distance(wanted, found).sqnr_db > 30
    reasons = [refused.reason for record in fxq.report(gm).passes for refused in record.refused]
    assert any("overwritten in place" in reason for reason in reasons)


@needs_engine
def test_an_index_into_the_one_result_of_a_segment_is_no_choice_of_results(tmp_path: Path) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(20, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x).view(x.shape[0], -1)[:, :20])
            return y

    torch.manual_seed(0)
    model, x = Cut().eval(), torch.randn(2, 3, 6, 6)
    gm = fxq.compile(model, x, calibration=[x], target="native")
    assert any(isinstance(m, fxq.engine.Segment) for m in gm.modules())
    fxq.save(gm, tmp_path / "cut.fxq")
    with torch.no_grad():
        assert torch.equal(fxq.load(tmp_path / "cut.fxq")(x), gm(x))
        assert distance(model(x), dissolve(gm)(x)).sqnr_db > 35


def test_code_that_fxq_cannot_see_into_may_write() -> None:
    class Unseen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2.0 if float(x.sum()) > 0 else 3.0)

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unseen = Unseen()

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = torch.cos(x)
            view, largest = y.flatten(), y.sort(0).values
            self.unseen(y)
            return view, largest, y

    gm = fxq.trace(Around(), torch.randn(2, 3))
    run_recorded(gm, (torch.randn(2, 3),), {})
    order = writing_order(gm.graph, Identifier(gm))
    named = {node.name: period for node, period in order.period.items()}
    assert (named["sort"], named["unseen"], named["output"]) == (0, 0, 1)  # a tensor's sort is not that of a list
    assert [node.name for node in order.shared] == ["flatten"]


def test_a_tensor_of_one_reader_has_no_order_to_keep() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cos(x)
            y[:] = 1.0
            return x + 1

    gm = fxq.trace(Own(), torch.randn(2, 3))
    order = writing_order(gm.graph, Identifier(gm))
    assert set(order.period.values()) == {0}
    assert not order.shared


def _all(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
