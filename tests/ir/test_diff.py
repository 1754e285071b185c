from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import GraphDiff, Rewriter, diff, take_snapshot


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.add(F.relu(self.linear(x)), 1.0))


def difference(edit: Callable[[Rewriter, dict[str, fx.Node]], None]) -> GraphDiff:
    """Return what an edit changed, as two snapshots show it."""
    gm = fx.symbolic_trace(Model())
    rw = Rewriter(gm)
    edit(rw, {n.name: n for n in rw.graph.nodes})
    return diff(take_snapshot(gm), take_snapshot(rw.finish()))


def names(nodes: tuple[object, ...]) -> list[str]:
    return [getattr(n, "name", "") for n in nodes]


def test_nothing() -> None:
    d = difference(lambda rw, n: None)
    assert not d.modified
    assert names(d.unchanged) == ["x", "linear", "relu", "add", "tanh", "output"]
    assert str(d) == "+0 -0 ~0"


def test_removed() -> None:
    d = difference(lambda rw, n: rw.replace(n["relu"], n["linear"]))
    assert names(d.removed) == ["relu"]
    assert [(c.after.name, c.fields) for c in d.changed] == [("add", ("inputs", "args"))]
    assert not d.added
    assert str(d) == "+0 -1 ~1"


def test_added() -> None:
    def edit(rw: Rewriter, n: dict[str, fx.Node]) -> None:
        new = rw.call_function(torch.abs, (n["relu"],), after=n["relu"], name="absolute")
        rw.replace_uses(n["relu"], new)

    d = difference(edit)
    assert names(d.added) == ["absolute"]
    assert [c.after.name for c in d.changed] == ["add"]
    assert sorted(d.status().values()) == ["added", "changed"] + ["unchanged"] * 5


def test_changed_says_in_what() -> None:
    weight = nn.Linear(3, 3)
    settings = nn.Linear(3, 3, bias=False)
    assert difference(lambda rw, n: rw.set_module(n["linear"], weight)).changed[0].fields == ("digest",)
    assert difference(lambda rw, n: rw.set_module(n["linear"], settings)).changed[0].fields == ("details", "digest")
    (change,) = difference(lambda rw, n: rw.update(n["add"], args=(n["relu"], 2.0))).changed
    assert (change.fields, change.before.args, change.after.args) == (("args",), "%relu, 1.0", "%relu, 2.0")
    (change,) = difference(lambda rw, n: rw.update(n["relu"], target=torch.abs, kwargs={})).changed
    assert change.fields == ("kind", "target", "args")


def test_a_renamed_node_is_no_change() -> None:
    def edit(rw: Rewriter, n: dict[str, fx.Node]) -> None:
        n["relu"].name = "activation"
        rw.update(n["tanh"], args=(), kwargs={"input": n["add"]})

    d = difference(edit)
    assert [c.after.name for c in d.changed] == ["tanh"]
    assert "activation" in names(d.unchanged)
