"""Measured profiles: each layer of a segment has a time, and shares of the machine's peaks, which a file keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import fxq
from fxq.analysis.layer_time import LayerTime
from fxq.engine import peaks
from fxq.engine.library import unavailable_reason
from fxq.engine.peaks import Peaks

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peaks, "_operations", lambda threads: 1e12 * threads)
    monkeypatch.setattr(peaks, "_bandwidth", lambda threads: 1e10)


def test_each_layer_of_a_segment_has_a_time() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 5)).eval()
    gm = fxq.compile(model, x, calibration=[x], target="native", progress=False)
    found = fxq.profile(gm, x[:1], measured=True)
    assert set(found.times) >= {layer.name for layer in found.layers}
    assert found.seconds == pytest.approx(sum(t.seconds for t in found.times.values()))
    assert "of peak" in str(found)
    assert "TOPS in int8" in str(found)
    assert json.dumps(found.to_dict())
    assert "of peak" not in str(fxq.profile(gm, x[:1]))


def test_shares() -> None:
    time = LayerTime.of(1e-3, 10**9, 5 * 10**6, Peaks(4e12, 1e10, 2))
    assert (time.tops, time.of_peak, time.of_bandwidth) == (2.0, 0.5, 0.5)
    assert time.cells() == ("1.00 ms", "2.00", "50%", "50%")


def test_peaks_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = peaks.machine_peaks(2)
    assert first == Peaks(2e12, 1e10, 2)
    monkeypatch.setattr(peaks, "_operations", lambda threads: 0.0)
    assert peaks.machine_peaks(2) == first
    peaks._file().write_text("{")
    monkeypatch.setattr(peaks, "_operations", lambda threads: 3e12)
    assert peaks.machine_peaks(2).operations == 3e12


def test_what_is_no_graph_has_no_layers_to_measure() -> None:
    with pytest.raises(fxq.InputError, match="only a graph module"):
        fxq.profile(nn.Linear(3, 3), torch.randn(1, 3), measured=True)
