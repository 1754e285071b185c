"""Segments as modules: any batch, several sizes and threads, copies, and inputs that do not fit."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason
from fxq.engine.segment import CACHED, Segment
from fxq.nn.packed import Packed

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


class Small(nn.Module):
    """Two convolutions, an addition, a squeeze-and-excite, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.squeeze, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.conv(x) + x)
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        y: Tensor = self.fc(x.mean((2, 3)))
        return y


def images(count: int, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


@pytest.fixture(scope="module")
def gm() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.compile(Small().eval(), images(2), calibration=[images(8)], target="native", progress=False)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_compiled_module_holds_no_weights_in_float() -> None:
    gm = fxq.compile(Small().eval(), images(2), calibration=[images(8)], target="native", progress=False)
    gm(images(3))
    layers = [m for m in gm.modules() if isinstance(m, Packed)]
    assert layers
    assert all(m._derived is None for m in layers)


def test_the_whole_network_is_one_segment(gm: fx.GraphModule) -> None:
    (_, segment), *others = segments(gm)
    assert not others
    assert [n.op for n in gm.graph.nodes] == ["placeholder", "call_module", "output"]
    assert torch.allclose(segment(images(4)), segment.reference(images(4)), atol=0.05)


def test_an_image_gives_the_same_in_every_batch(gm: fx.GraphModule) -> None:
    x = images(9)
    alone = torch.cat([gm(x[i : i + 1]) for i in range(9)])
    for count in (1, 2, 5, 9):
        assert torch.equal(gm(x[:count]), alone[:count])
    assert gm(x[:0]).shape == (0, 10)


def test_threads_and_repetitions_give_the_same_bits(gm: fx.GraphModule) -> None:
    x = images(5)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += [gm(x) for _ in range(5)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(y, found[0]) for y in found)


def test_several_threads_call_at_once(gm: fx.GraphModule) -> None:
    inputs = [images(1 + i, 16 + 2 * (i % 3)) for i in range(8)]
    wanted = [gm(x) for x in inputs]
    wrong: list[int] = []

    def call(i: int) -> None:
        with torch.no_grad():
            wrong.extend(i for _ in range(20) if not torch.equal(gm(inputs[i]), wanted[i]))

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_strides_do_not_matter(gm: fx.GraphModule) -> None:
    x = images(3)
    wide = torch.zeros(3, 5, 20, 40)
    wide[:, 1:4, 2:18, 4:36:2] = x
    others = [x.to(memory_format=torch.channels_last), wide[:, 1:4, 2:18, 4:36:2], x.flip(0).flip(0)]
    assert all(torch.equal(gm(other), gm(x)) for other in others)
    assert torch.equal(gm(x[:1].expand(3, -1, -1, -1)), gm(x[:1]).expand(3, -1))


def test_copies_and_files(gm: fx.GraphModule, tmp_path: Path) -> None:
    x = images(3)
    wanted = gm(x)
    fxq.save(gm, tmp_path / "gm.fxq")
    loaded = fxq.load(tmp_path / "gm.fxq")
    assert [n.name for n in loaded.graph.nodes] == [n.name for n in gm.graph.nodes]
    state = copy.deepcopy(gm)
    state.load_state_dict(gm.state_dict())
    for other in (copy.deepcopy(gm), pickle.loads(pickle.dumps(gm)), loaded, state):
        assert torch.equal(other(x), wanted)


def test_new_weights_are_packed_anew(gm: fx.GraphModule) -> None:
    other = copy.deepcopy(gm)
    x = images(2)
    before = other(x)
    state = other.state_dict()
    other.load_state_dict({k: torch.zeros_like(v) if k.endswith("weight") else v for k, v in state.items()})
    assert not torch.equal(other(x), before)


def test_programs_are_kept_for_the_last_sizes(gm: fx.GraphModule) -> None:
    ((_, segment),) = segments(copy.deepcopy(gm))
    for size in range(8, 8 + CACHED + 2):
        segment(images(1, size))
    assert segment.plans == len(segment._runs) + 2 == CACHED + 2
    segment(images(3, 8 + CACHED))
    assert segment.plans == CACHED + 2


BAD = [
    (lambda: (torch.randn(2, 4, 16, 16),), "channels"),
    (lambda: (torch.randn(2, 3, 16, 16).double(),), "float64"),
    (lambda: (torch.randint(0, 255, (2, 3, 16, 16)).to(torch.uint8),), "uint8"),
    (lambda: (torch.randn(3, 16, 16),), "3 dimensions"),
    (lambda: (torch.randn(2, 3, 0, 16),), "size|shape|smaller"),
    (lambda: (torch.randn(2, 3, 16, 16).to_sparse(),), "sparse"),
    (lambda: (torch.randn(2, 3, 16, 16, device="meta"),), "meta"),
    (lambda: ("image",), "not a tensor"),
    (lambda: (images(1), images(1)), "takes 1 tensor"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD, ids=[message for _, message in BAD])
def test_inputs_that_do_not_fit(gm: fx.GraphModule, inputs: object, message: str) -> None:
    ((_, segment),) = segments(gm)
    segment(images(2))
    with pytest.raises(fxq.InputError, match=message):
        segment(*inputs())  # type: ignore[operator]
    assert segment(images(2)).shape == (2, 10)


def test_the_report_names_the_parts(gm: fx.GraphModule) -> None:
    assert [type(m) for _, m in segments(gm)] == [Segment]
    assert "form_segments" in [p.name for p in fxq.report(gm).passes]


def test_without_the_engine_the_modules_run(gm: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise fxq.TargetError("fxq's native engine is not there")

    other = copy.deepcopy(gm)
    ((_, segment),) = segments(other)
    monkeypatch.setattr("fxq.engine.library.load", missing)
    with pytest.warns(RuntimeWarning, match="without the native engine"):
        found = other(images(2))
    assert torch.equal(found, segment.reference(images(2)))
