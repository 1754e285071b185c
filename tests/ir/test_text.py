from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.ir import graph_text, take_snapshot
from fxq.ir.shapes import run_recorded
from fxq.ir.text import excerpt

GOLDEN = """\
graph FLOAT:
  %x = placeholder -> f32[2, 2, 5, 5]
  %conv = conv2d[conv](%x) {2, 3, kernel_size=(3, 3), stride=(1, 1)} -> f32[2, 3, 3, 3]
  %relu = relu(%conv, inplace=False) -> f32[2, 3, 3, 3]
  %offset = get_attr[offset] -> f32[1]
  %add = add(%relu, %offset) -> f32[2, 3, 3, 3]
  %cat = cat([%add, %relu], dim=1) -> f32[2, 6, 3, 3]
  %sin = sin(%cat) -> f32[2, 6, 3, 3]
  %chunk = chunk(%sin, 2, 1) -> (f32[2, 3, 3, 3], f32[2, 3, 3, 3])
  %getitem = getitem(%chunk, 0) -> f32[2, 3, 3, 3]
  return (%getitem, %add)"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.conv(x))
        z = y + self.offset
        return torch.cat([z, y], dim=1).sin().chunk(2, 1)[0], z


def test_golden() -> None:
    gm = fx.symbolic_trace(Model())
    run_recorded(gm, (torch.randn(2, 2, 5, 5),))
    assert graph_text(take_snapshot(gm)) == GOLDEN


def test_without_shapes() -> None:
    text = graph_text(take_snapshot(fx.symbolic_trace(Model())))
    assert text == "\n".join(line.split(" -> ")[0] for line in GOLDEN.splitlines())


def test_an_excerpt_marks_its_node() -> None:
    snapshot = take_snapshot(fx.symbolic_trace(Model()))
    lines = excerpt(snapshot, "add", around=1).splitlines()
    assert [line.split(" = ")[0].strip() for line in lines] == ["%offset", "-> %add", "%cat"]
    assert len(excerpt(snapshot, "add").splitlines()) == 9
    assert len(excerpt(snapshot, "x", around=2).splitlines()) == 3
    assert "->" not in excerpt(snapshot, None)


def test_an_excerpt_is_bounded() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for _ in range(50):
        x = graph.call_function(torch.cat, ([x] * 500,))
    graph.output(x)
    text = excerpt(take_snapshot(fx.GraphModule(nn.Module(), graph)), "cat_25")
    assert len(text) < 9 * 161
    assert "..." in text
