from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.ir.unknown_writes import WRITTEN_KEY, run_noting_writes
from fxq.tracing import trace


def by_a_method(x: Tensor) -> None:
    x.mul_(2.0)


def past_the_counter(x: Tensor) -> None:
    x.data.mul_(2.0)


def through_numpy(x: Tensor) -> None:
    x.detach().numpy()[...] *= 2.0


def through_a_view(x: Tensor) -> None:
    x.flatten()[0] = 7.0


def not_at_all(x: Tensor) -> None:
    (x * 2.0).add_(1.0)


WRITERS = [by_a_method, past_the_counter, through_numpy, through_a_view]


class Unseen(nn.Module):
    """Code that cannot be traced: what it does depends on its input."""

    def __init__(self, write: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.isfinite().all()) or bool(x.isnan().any()):
            self.write(x)
        return x.sum()


class Net(nn.Module):
    def __init__(self, write: Callable[[Tensor], None], body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.unseen, self.body = Unseen(write), body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def read_later(net: Any, x: Tensor) -> Any:
    y = torch.cos(x)
    before = y.exp()
    return net.unseen(y), before, y.sin()


def a_view_read_later(net: Any, x: Tensor) -> Any:
    y = torch.cos(x)
    turned, copied = y.transpose(0, 1), y.exp()
    return net.unseen(y), turned.sin(), copied.sin()


def only_read_before(net: Any, x: Tensor) -> Any:
    y = torch.cos(x)
    before = y.sin()
    return net.unseen(y), before


def the_input(net: Any, x: Tensor) -> Any:
    return net.unseen(x), x.sin()


def marks(write: Callable[[Tensor], None], body: Callable[[Any, Tensor], Any], x: Tensor) -> dict[str, str]:
    gm = trace(Net(write, body).eval(), x)
    run_noting_writes(gm, (x.clone(),), {})
    return {node.name: node.meta[WRITTEN_KEY] for node in gm.graph.nodes if WRITTEN_KEY in node.meta}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("body", "wanted"),
    [(read_later, {"cos"}), (a_view_read_later, {"transpose"}), (only_read_before, set()), (the_input, {"x"})],
)
def test_what_is_overwritten_and_read_later_is_noted(write: Any, body: Any, wanted: set[str]) -> None:
    assert marks(write, body, torch.randn(3, 4)) == dict.fromkeys(wanted, "unseen")


@pytest.mark.parametrize("x", [torch.randn(3, 4), torch.full((3, 4), torch.nan)], ids=["numbers", "nan"])
def test_what_is_only_read_is_not(x: Tensor) -> None:
    assert marks(not_at_all, read_later, x) == {}


def test_another_run_forgets_the_notes_of_the_last() -> None:
    x = torch.randn(3, 4)
    gm = trace(Net(by_a_method, read_later).eval(), x)
    run_noting_writes(gm, (x.clone(),), {})
    gm.get_submodule("unseen").write = not_at_all
    run_noting_writes(gm, (x.clone(),), {})
    assert not any(WRITTEN_KEY in node.meta for node in gm.graph.nodes)


def test_tensors_of_inference_mode_are_compared() -> None:
    with torch.inference_mode():
        assert marks(by_a_method, read_later, torch.randn(3, 4)) == {"cos": "unseen"}
