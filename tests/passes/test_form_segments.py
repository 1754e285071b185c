"""Forming segments: what goes in, what stays outside and why, and that the graph computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.engine.dissolve import dissolve
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from fxq.engine.segment import Segment
from fxq.ir.snapshot import take_snapshot
from fxq.passes import FormSegments

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


class Mixed(nn.Module):
    """Int8 layers on both sides of a sort, which no engine runs, and a path around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.b(torch.relu(self.a(x))))
        second = self.c(first.sort(1).values)
        return second, first


def lowered(model: nn.Module, x: Any) -> fxq.passes.PassResult:
    torch.manual_seed(0)
    gm = fxq.compile(model.eval(), x, calibration=[x], target="reference", progress=False)
    return FormSegments()(gm, x)


def test_parts_around_what_the_engine_lacks() -> None:
    x = torch.randn(2, 4, 8, 8)
    result = lowered(Mixed(), x)
    gm = result.graph_module
    assert len(segments(gm)) == 2
    refused = {r.node: r.reason for r in result.refused}
    assert "sort" in refused["sort"]
    assert not any(isinstance(m, fxq.nn.QConv2d) for name, m in gm.named_modules() if ".subgraph." not in name)
    before = fxq.compile(Mixed().eval(), x, calibration=[x], target="reference", progress=False)
    with torch.no_grad():
        for found, wanted in zip(gm(x), dissolve(gm)(x), strict=True):
            assert torch.allclose(found, wanted, atol=0.05)
    assert len(dissolve(gm).graph.nodes) == len(before.graph.nodes)


def test_dissolving_gives_the_graph_back() -> None:
    x = torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    gm = fxq.compile(Mixed().eval(), x, calibration=[x], target="reference", progress=False)
    formed = FormSegments(outside="reference")(gm, x).graph_module
    again = dissolve(formed)
    names = [[(n.name, n.target, n.args) for n in take_snapshot(g).nodes] for g in (gm, again)]
    assert sorted(map(str, names[0])) == sorted(map(str, names[1]))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(gm(x), again(x), strict=True))


class Moves(nn.Module):
    """A convolution that the engine lacks, and moves of codes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(4, 4, 1), nn.Conv3d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(torch.relu(self.a(x)).flip(2))
        return y


def test_a_part_without_work_is_not_formed() -> None:
    x = torch.randn(2, 4, 2, 3, 3)
    result = lowered(Moves(), x)
    assert not segments(result.graph_module)
    assert any("dimensions" in r.reason for r in result.refused)


def test_hooks_stay_outside() -> None:
    x = torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    gm = fxq.compile(Mixed().eval(), x, calibration=[x], target="reference", progress=False)
    gm.get_submodule("a").register_forward_hook(lambda *_: None)
    result = FormSegments()(gm, x)
    assert {r.node: r.reason for r in result.refused}["a"] == "it has hooks"
    assert not any(isinstance(m, Segment) and "a" in dict(m.subgraph.named_modules()) for m in gm.modules())


def test_diagrams_open_segments() -> None:
    x = torch.randn(2, 4, 8, 8)
    gm = lowered(Mixed(), x).graph_module
    assert "QConv2d" not in fxq.visualize.diagram(gm).source
    assert fxq.visualize.diagram(gm, open_segments=True).source.count("QConv2d") >= 3
    assert "QConv2d" in fxq.visualize.diagram(segments(gm)[0][1].subgraph).source


class Padded(nn.Module):
    """Two encoder layers under one padding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x, src_key_padding_mask=padding))
        return out


def test_boolean_masks_are_added_so_that_attention_is_inside() -> None:
    torch.manual_seed(0)
    x, padding = torch.randn(3, 6, 16), torch.arange(6) >= torch.tensor([[6], [4], [2]])
    model = Padded().eval()
    gm = fxq.compile(model, (x, padding), calibration=[(x, padding)], target="reference", progress=False)
    result = FormSegments()(gm, (x, padding))
    assert len(segments(result.graph_module)) == 1
    assert [m.rule for m in result.matched].count("added_mask") == 2
    kinds = [n.kind for n in result.record.after.nodes]
    assert "attention" not in kinds
    assert kinds.count("masked_fill") == 1
    with torch.no_grad():
        for batch in (x, padding), (x[1:], padding[1:]), (x[:1], padding[:1]):
            found, wanted = result.graph_module(*batch), model(*batch)
            shown = ~batch[1]
            assert torch.allclose(found[shown], wanted[shown], atol=0.1)
            assert torch.allclose(found, gm(*batch), atol=0.02)
        shut = torch.ones_like(padding)
        assert torch.allclose(result.graph_module(x, shut), gm(x, shut), atol=0.02), "a query without any key"


def test_masks_of_numbers_and_masks_of_all_images_alike_stay() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(8, 8)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q = self.stem(x)
            return nn.functional.scaled_dot_product_attention(q, q, q, mask)

    x = torch.randn(2, 2, 5, 8)
    for mask in (torch.randn(2, 1, 5, 5), torch.ones(5, 5, dtype=torch.bool).tril()):
        result = lowered(Masked(), (x, mask))
        assert "added_mask" not in [m.rule for m in result.matched]
