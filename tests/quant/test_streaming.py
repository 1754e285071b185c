"""Calibration data of any length: what stays in memory, and what a loader may do with its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.quant import calibration
from fxq.quant.calibration import Calibration
from fxq.quant.observers import HistogramObserver
from fxq.tracing import ModelInputs


class Counting:
    """Yields fresh batches and counts how many of them are alive."""

    def __init__(self, batches: int, size: int = 32) -> None:
        self.batches, self.size, self.most = batches, size, 0
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for index in range(self.batches):
            batch = torch.randn(self.size, 3, 8, 8, generator=generator)
            self.alive.add(batch)
            self.most = max(self.most, len(self.alive))
            yield {"x": batch, "label": torch.tensor(index)}
            del batch


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return y


def bytes_of(batches: list[ModelInputs]) -> int:
    return sum(t.numel() * t.element_size() for b in batches for t in b.kwargs.values())


def test_a_thousand_images_and_more_stream_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes what catches the output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    few, many = Counting(4), Counting(40)  # 128 and 1,280 images
    for loader in (few, many):
        fxq.compile(Network().eval(), calibration=loader, progress=True)
    assert many.most <= few.most <= 4
    assert "calibrating" in capsys.readouterr().err


def test_statistics_do_not_grow() -> None:
    sizes = []
    for count in (2, 50):
        observer = HistogramObserver("`x`")
        observer.active = True
        for batch in Counting(count):
            observer(batch["x"])
        sizes.append(sum(t.numel() for t in (observer.histogram.positive, observer.histogram.negative)))
    assert sizes == [2 * 2048, 2 * 2048]


def test_what_is_kept_is_bounded_in_number_and_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Network()
    data = Calibration(Counting(40), model)
    data.run(model)
    assert len(list(data.again())) == 16
    batch = 32 * 3 * 8 * 8 * 4
    monkeypatch.setattr(calibration, "_KEPT_BYTES", 3 * batch + 1)
    data.run(model)
    assert bytes_of(list(data.again())) == 3 * batch
    monkeypatch.setattr(calibration, "_KEPT_BYTES", 10)
    data.run(model)
    assert len(list(data.again())) == 1


def test_a_loader_may_fill_one_buffer_again_and_again() -> None:
    def reusing() -> Iterator[Tensor]:
        buffer = torch.empty(2, 3, 8, 8)
        for index in range(5):
            yield buffer.fill_(float(index))

    def fresh() -> Iterator[Tensor]:
        for index in range(5):
            yield torch.full((2, 3, 8, 8), float(index))

    model = Network().eval()
    data = Calibration(reusing(), model)
    data.first()
    data.run(model)
    assert [float(b.args[0].flatten()[0]) for b in data.again()] == [0.0, 1.0, 2.0, 3.0, 4.0]
    x = torch.rand(2, 3, 8, 8)
    for corrections in (("bias",), ("bias_accurate",)):
        recipe = fxq.Recipe(corrections=corrections)
        one, two = (fxq.compile(model, calibration=d(), recipe=recipe, target="reference") for d in (reusing, fresh))
        assert torch.equal(one(x), two(x))


def test_what_a_reader_does_with_a_kept_batch_is_seen_by_nobody_else() -> None:
    model = Network()
    batch = torch.ones(1, 3, 8, 8)
    data = Calibration([batch], model)
    data.run(model)
    batch.zero_()
    assert float(next(data.again()).args[0].sum()) == 192.0
