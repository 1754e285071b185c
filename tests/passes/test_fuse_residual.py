from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.errors import VerifyError
from fxq.ir import Stage, diff, stage_of, take_snapshot
from fxq.ir.stage import set_graph_state
from fxq.manager import PassManager
from fxq.manager.base import PassResult
from fxq.nn import Epilogue
from fxq.passes.fuse_activation import FuseActivation
from fxq.passes.fuse_residual import FuseResidual
from fxq.passes.layers.queries import epilogue_of
from fxq.tracing import TracedModule, trace


def canonical(model: nn.Module, x: Tensor | None = None) -> TracedModule:
    """Trace a model that is written in canonical form already."""
    gm = trace(model.eval(), x)
    set_graph_state(gm, stage=Stage.CANONICAL)
    return gm


def fuse(model: nn.Module, x: Tensor | None = None) -> PassResult:
    """Run the pass on the traced model; the graph that went in must stay as it was."""
    gm = canonical(model, x)
    before = take_snapshot(gm)
    result = FuseResidual()(gm, x)
    assert not diff(before, take_snapshot(gm)).modified
    return result


def reasons(result: PassResult) -> list[str]:
    return [r.reason for r in result.refused]


def fused_paths(gm: nn.Module) -> list[str]:
    return [path for path, module in gm.named_modules() if epilogue_of(module).add]


class Base(nn.Module):
    """Layers that keep (batch, 4, height, width) and (batch, ..., 5) as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 4, 1)
        self.up = nn.ConvTranspose2d(4, 4, 1)
        self.constant = nn.Parameter(torch.ones(1, 4, 5, 5))


class ResidualFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class ResidualSecond(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.up(x), x)


class ResidualLater(Base):
    """The residual is computed behind the layer: the layer has to move."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = torch.sigmoid(x)
        return y + z * 2.0


class ResidualNext(Base):
    """The residual is the node right behind the layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = torch.sigmoid(x)
        return y + z


class InPlaceIntoTheLayer(Base):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        y += x
        return y


FUSED = [ResidualFirst, ResidualSecond, ResidualLater, ResidualNext, InPlaceIntoTheLayer]


@pytest.mark.parametrize("make", FUSED)
def test_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    result = fuse(model, torch.randn(2, 4, 5, 5))
    assert [m.rule for m in result.matched] == ["fuse_residual"]
    assert not result.refused
    assert "add" not in [n.kind for n in result.record.after.nodes]
    for x in (torch.randn(2, 4, 5, 5), torch.randn(3, 4, 7, 7)):
        assert torch.equal(result.graph_module(x), model(x))


class AddedThenAveraged(Base):
    """The mean over positions rounds by the order in which the sum lies in memory."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.add, self.wide = add, nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.add(self.wide(x), x))
        return y, torch.mean(y, dim=(2, 3), keepdim=False, dtype=None)


ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "layer first": lambda y, r: y + r,
    "residual first": lambda y, r: r + y,
    "in place": lambda y, r: y.add_(r),
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3),
    "cropped": lambda x: F.pad(x, (1, 1))[..., 1:-1],
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("weight", ["contiguous", "channels last"])
@pytest.mark.parametrize("order", ORDERS)
def test_bit_for_bit_in_every_memory_format(order: str, weight: str) -> None:
    torch.manual_seed(0)
    model = AddedThenAveraged(ORDERS[order])
    model.wide.weight.data = LAYOUTS[weight](model.wide.weight.data)
    example = torch.randn(2, 16, 28, 28)
    gm, _ = PassManager([FuseResidual(), FuseActivation()])(canonical(model, example), example)
    assert fused_paths(gm) == ["wide"]
    for layout in LAYOUTS.values():
        x = layout(torch.randn(2, 16, 28, 28))
        with torch.no_grad():
            (sums, means), (wanted_sums, wanted_means) = gm(x), model(x)
        assert torch.equal(sums, wanted_sums)
        assert sums.stride() == wanted_sums.stride()
        assert torch.equal(means, wanted_means)


def test_linear_layers_of_any_rank() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    model, x = Model(), torch.randn(2, 3, 5)
    result = fuse(model, x)
    assert fused_paths(result.graph_module) == ["linear"]
    assert torch.equal(result.graph_module(x), model(x))


def test_the_layer_keeps_its_node() -> None:
    record = fuse(ResidualFirst(), torch.randn(2, 4, 5, 5)).record
    before, after = record.before.nodes[1], record.after.nodes[1]
    assert (after.id, after.name, after.target) == (before.id, before.name, "conv")
    assert after.args == "%x, %x"
    assert [(o.pass_name, o.rule) for o in after.origins] == [("fuse_residual", "fuse_residual")] * 2
    assert stage_of(fuse(ResidualFirst(), torch.randn(2, 4, 5, 5)).graph_module) is Stage.FUSED


class Projection(Base):
    """As in ResNet: the projection comes last in the graph, and is not the main path."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(F.relu(self.conv(x)))
        return F.relu(y + self.shortcut(x))


class ProjectionFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = self.shortcut(x)
        return F.relu(z + self.deep(F.relu(self.conv(x))))


@pytest.mark.parametrize("make", [Projection, ProjectionFirst])
def test_of_two_layers_the_deeper_takes_the_addition(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, 4, 5, 5)
    result = fuse(model, x)
    assert fused_paths(result.graph_module) == ["deep"]
    assert not result.refused
    assert torch.equal(result.graph_module(x), model(x))


class ProjectionWithUsedMainPath(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.deep(F.relu(self.conv(x)))
        return y + self.shortcut(x), y


def test_the_shortcut_takes_the_addition_where_the_main_path_cannot() -> None:
    torch.manual_seed(0)
    model, x = ProjectionWithUsedMainPath(), torch.randn(2, 4, 5, 5)
    result = fuse(model, x)
    assert fused_paths(result.graph_module) == ["shortcut"]
    assert all(torch.equal(a, b) for a, b in zip(result.graph_module(x), model(x), strict=True))


def test_then_the_activation_joins() -> None:
    torch.manual_seed(0)
    model, x = Projection(), torch.randn(2, 4, 5, 5)
    gm, report = PassManager([FuseResidual(), FuseActivation()])(canonical(model, x), x)
    assert epilogue_of(gm.get_submodule("deep")) == Epilogue("relu", add=True)
    assert [r.total is not None and r.total.equal for r in report.passes] == [True, True]
    for batch in (x, torch.randn(3, 4, 6, 6)):
        assert torch.equal(gm(batch), model(batch))


def test_idempotent() -> None:
    x = torch.randn(2, 4, 5, 5)
    again = FuseResidual()(fuse(ResidualFirst(), x).graph_module, x)
    assert not again.modified
    assert not again.matched
    assert not again.refused


# -- refusals ------------------------------------------------------------------------------------------------------


class Broadcast(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + F.adaptive_avg_pool2d(x, 1)


class OtherDtype(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x.double()


class Constant(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.constant


class ToItself(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.add(y, y)


class Twice(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x)) + x


class Used(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + x) * y


class Returned(Base):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y + x, y


class IntoTheResidual(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.sigmoid(x)
        y = self.conv(x)
        return z.add_(y)


class Overwritten(Base):
    def forward(self, x: Tensor) -> Tensor:
        z = torch.sigmoid(x)
        y = self.conv(x)
        z.mul_(2.0)
        return y + z


class Unseen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2.0)


class PastAnOpaqueModule(Base):
    def __init__(self) -> None:
        super().__init__()
        self.unseen = Unseen()
        self.unseen.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.sigmoid(x)
        y = self.conv(x)
        self.unseen(z)
        return y + z


class OutputSize(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.up(x, output_size=[5, 5]) + x


class Special(nn.Conv2d):
    pass


class Opaque(Base):
    def __init__(self) -> None:
        super().__init__()
        self.special = Special(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.special(x)


REFUSED: dict[type[nn.Module], str] = {
    Broadcast: "the two sides differ: f32[2, 4, 5, 5] and f32[2, 4, 1, 1]",
    OtherDtype: "the two sides differ: f32[2, 4, 5, 5] and f64[2, 4, 5, 5]",
    Constant: "the other side, `constant`, is a constant",
    ToItself: "`conv` is added to itself",
    Twice: "`conv` is called twice",
    Used: "the value of `conv` is also used by `mul`",
    Returned: "the value of `conv` is returned",
    IntoTheResidual: "`add_` writes into `sigmoid` in place",
    Overwritten: "`mul_` may write in place between `conv` and `add`",
    PastAnOpaqueModule: "`unseen` may write in place between `conv` and `add`",
    OutputSize: "`up` is called with further arguments, such as output_size",
    Opaque: "`special` is an opaque module (Special)",
}


@pytest.mark.parametrize("make", REFUSED)
def test_refused(make: type[nn.Module]) -> None:
    result = fuse(make(), torch.randn(2, 4, 5, 5))
    assert reasons(result) == [REFUSED[make]]
    assert not result.matched
    assert not result.record.diff.modified


def test_refused_without_shapes() -> None:
    result = fuse(ResidualFirst())
    assert reasons(result) == ["the shapes of the two sides are not known without example inputs"]


def test_refused_behind_an_activation() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x)) + x

    x = torch.randn(2, 4, 5, 5)
    fused = FuseActivation()(canonical(Model(), x), x).graph_module
    assert reasons(FuseResidual()(fused, x)) == ["`conv` already ends in relu"]


def test_no_candidate_without_a_layer_or_with_a_scale() -> None:
    class Model(Base):
        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.conv(x), x, alpha=2) + torch.sigmoid(x)

    result = fuse(Model(), torch.randn(2, 4, 5, 5))
    assert not result.refused
    assert not result.record.diff.modified


def test_a_wrong_epilogue_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 4, 5, 5)
    wrong = Epilogue("relu", add=True)
    monkeypatch.setattr("fxq.passes.fuse_residual.Epilogue", lambda add, residual_first: wrong)
    with pytest.raises(VerifyError, match="`fuse_residual` promises EXACT and changed the output") as caught:
        PassManager([FuseResidual()])(canonical(ResidualFirst(), x), x)
    assert "module `conv`" in str(caught.value)
