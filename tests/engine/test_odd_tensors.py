"""Tensors that are not simply memory on the CPU: never a crash, never what happens to lie there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fxq
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from tests.engine.test_segment import Small, images

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.compile(Small().eval(), images(2), calibration=[images(8)], target="native", progress=False)


def negated(x: Tensor) -> Tensor:
    """The values of ``x``, with the other sign in memory."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg()
    return view


def reference(gm: fx.GraphModule, x: Tensor) -> Tensor:
    ((_, segment),) = segments(gm)
    found: Tensor = segment.reference(x)
    return found


def test_a_negated_view_has_its_values(gm: fx.GraphModule) -> None:
    x = images(3)
    assert torch.equal(gm(negated(x)), reference(gm, x))


def test_results_are_on_the_cpu_whatever_the_default_is(gm: fx.GraphModule) -> None:
    x = images(3)
    wanted = gm(x)
    with torch.device("meta"):
        assert torch.equal(gm(x), wanted)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_a_fake_tensor_has_a_fake_result(gm: fx.GraphModule) -> None:
    x = images(3)
    reference(gm, x)  # what its modules compute from their weights needs real ones
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = gm(mode.from_tensor(x))
        assert isinstance(gm(x), FakeTensor)
    assert isinstance(found, FakeTensor)
    assert found.shape == (3, 10)


def test_a_tensor_of_zeros_without_memory_is_not_read(gm: fx.GraphModule) -> None:
    gm(images(3))  # a program for this size is at hand
    with pytest.raises(RuntimeError, match="ZeroTensors are immutable"):
        gm(torch._efficientzerotensor((3, 3, 16, 16)))


def test_a_trace_by_torch_jit_is_refused(gm: fx.GraphModule) -> None:
    with pytest.raises(fxq.TargetError, match=r"torch\.jit\.trace cannot follow"):
        torch.jit.trace(gm, images(2))


def test_on_another_device_the_subgraph_runs(gm: fx.GraphModule) -> None:
    moved = copy.deepcopy(gm).to("meta")
    with pytest.raises(RuntimeError, match="cannot be called on meta"):  # not: the engine runs on the CPU
        moved(images(2).to("meta"))
