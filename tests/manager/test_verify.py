"""Passes that do not hold what they promise, and what the manager says about them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxq.errors import VerifyError
from fxq.ir import Rewriter, Stage
from fxq.ir.metrics import Distance
from fxq.ir.stage import set_graph_state
from fxq.manager import Numerics, Pass, PassContext, PassManager
from fxq.manager.verify import holds


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


def model(blocks: int = 3) -> fx.GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(*[Block() for _ in range(blocks)]).eval())


def inputs() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the weight of one layer."""

    name: ClassVar[str] = "scale"
    factor: float = 1.0
    path: str = "1.linear"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        node = next(n for n in rw.graph.nodes if n.target == self.path)
        layer = copy.deepcopy(rw.gm.get_submodule(self.path))
        with torch.no_grad():
            layer.weight *= self.factor
        with rw.rule("scale", node):
            rw.set_module(node, layer)


@dataclass(frozen=True)
class CloseScale(Scale):
    name: ClassVar[str] = "close_scale"
    numerics: ClassVar[Numerics] = Numerics.CLOSE


@dataclass(frozen=True)
class LossyScale(Scale):
    name: ClassVar[str] = "lossy_scale"
    numerics: ClassVar[Numerics] = Numerics.LOSSY


@dataclass(frozen=True)
class Wider(Pass):
    """Exchanges a layer for one with more outputs, and the next for one with more inputs."""

    name: ClassVar[str] = "wider"
    numerics: ClassVar[Numerics] = Numerics.LOSSY

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        nodes = {n.target: n for n in rw.graph.nodes}
        rw.set_module(nodes["0.linear"], nn.Linear(4, 6))
        rw.set_module(nodes["1.linear"], nn.Linear(6, 4))


@dataclass(frozen=True)
class Twin(Pass):
    """Returns two tensors where there was one."""

    name: ClassVar[str] = "twin"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        output = rw.graph.output_node()
        rw.update(output, args=((output.args[0], output.args[0]),))


@dataclass(frozen=True)
class Misfit(Pass):
    """Leaves a layer whose weight does not fit its input."""

    name: ClassVar[str] = "misfit"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        node = next(n for n in rw.graph.nodes if n.target == "1.linear")
        rw.set_module(node, nn.Linear(7, 4))


@dataclass(frozen=True)
class WritesIntoTheCallersWeights(Pass):
    name: ClassVar[str] = "writes"

    def rewrite(self, rw: Rewriter, context: PassContext) -> None:
        with torch.no_grad():
            rw.gm.get_submodule("1.linear").weight.mul_(2.0)


def test_an_exact_pass_that_changes_the_output_by_one_bit() -> None:
    with pytest.raises(VerifyError) as caught:
        PassManager([Scale(1.0 + 1e-6)])(model(), inputs())
    text = str(caught.value)
    assert text.startswith("the pass `scale` promises EXACT and changed the output: ")
    assert "where: node `_1_linear`, module `1.linear`" in text
    assert "-> %_1_linear = linear[1.linear](%relu)" in text
    assert "verify=False" in text


def test_a_close_pass_that_is_close_and_one_that_is_not() -> None:
    _, report = PassManager([CloseScale(1.0 + 1e-6)])(model(), inputs())
    step = report["close_scale"].step
    assert step is not None
    assert not step.equal
    assert step.sqnr_db > 100
    with pytest.raises(VerifyError, match=r"`close_scale` promises CLOSE and changed the output: \d+\.\d dB") as e:
        PassManager([CloseScale(1.01)])(model(), inputs())
    assert "module `1.linear`" in str(e.value)


def test_a_lossy_pass_records_its_noise() -> None:
    _, report = PassManager([PassManager([LossyScale(1.01)], name="a"), PassManager([LossyScale(0.9)], name="b")])(
        model(), inputs()
    )
    a, b = report.passes
    assert a.step is not None
    assert b.step is not None
    assert b.total is not None
    assert a.step == a.total
    assert a.step.sqnr_db > b.step.sqnr_db
    assert b.total != b.step


def test_a_changed_shape_is_caught_whatever_the_pass_promises() -> None:
    with pytest.raises(VerifyError, match=r"changed the value of `_0_linear` from f32\[5, 4\] to f32\[5, 6\]"):
        PassManager([Wider()])(model(), inputs())


def test_a_changed_structure_of_the_output_is_caught() -> None:
    with pytest.raises(VerifyError, match="`twin` changed the structure of the output"):
        PassManager([Twin()])(model(), inputs())


def test_a_graph_that_fails_is_caught() -> None:
    with pytest.raises(VerifyError, match=r"`misfit` left a graph that fails: .*`_1_linear`[\s\S]*module `1.linear`"):
        PassManager([Misfit()])(model(), inputs())


def test_writing_into_shared_weights_is_caught() -> None:
    with pytest.raises(VerifyError, match="`writes` promises EXACT"):
        PassManager([WritesIntoTheCallersWeights()])(model(), inputs())


def test_what_the_stage_does_not_allow_is_caught() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    set_graph_state(gm, stage=Stage.CANONICAL)
    with pytest.raises(VerifyError, match=r"`scale` left a graph that its stage does not allow: `relu` is not in"):
        PassManager([Scale(1.0, "0")])(gm)


def test_without_verification_everything_passes() -> None:
    manager = PassManager([Scale(2.0), Wider(), Twin()], verify=False)
    out, report = manager(model(), inputs())
    assert len(out(inputs())) == 2
    assert [p.step is None for p in report.passes] == [False, False, True]


def test_without_example_inputs_outputs_are_not_compared() -> None:
    _, report = PassManager([Scale(2.0)])(model())
    assert report["scale"].step is None


def test_messages_are_bounded() -> None:
    with pytest.raises(VerifyError) as caught:
        PassManager([Scale(2.0, "199.linear")])(model(200), inputs())
    assert len(str(caught.value)) < 2000
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize(
    ("eps", "sqnr", "ok"),
    [(1.2e-7, 75.0, True), (1.2e-7, 65.0, False), (7.8e-3, 25.0, True), (7.8e-3, 19.0, False), (2e-16, 75.0, True)],
)
def test_close_is_half_of_the_digits_of_the_dtype(eps: float, sqnr: float, ok: bool) -> None:
    step = Distance(equal=False, sqnr_db=sqnr, cosine=1.0, max_abs=1.0, scale=1.0, eps=eps)
    assert holds(Numerics.CLOSE, step) is ok
    assert not holds(Numerics.EXACT, step)
    assert holds(Numerics.LOSSY, step)


def test_an_output_of_nan_is_not_close() -> None:
    with pytest.raises(VerifyError, match="promises CLOSE"):
        PassManager([CloseScale(float("nan"))])(model(), inputs())


def test_random_operations_repeat() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train())
    state = torch.random.get_rng_state()
    _, report = PassManager([Scale(1.0, "0"), LossyScale(1.5, "0")])(gm, inputs())
    assert report["scale"].step is None  # nothing was modified
    step = report["lossy_scale"].step
    assert step is not None
    assert step.sqnr_db > 0
    assert torch.equal(state, torch.random.get_rng_state())
