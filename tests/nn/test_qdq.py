"""The quantise and dequantise calls."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import fx, nn

from fxq.nn import dequantize, quantize


@pytest.mark.parametrize("zero_point", [0, 57, 255])
@pytest.mark.parametrize("scale", [0.5, 0.1, 1e-3])
def test_quantize_is_the_formula(scale: float, zero_point: int) -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 200 * scale
    x[:6] = torch.tensor([0.0, scale / 2, -scale / 2, 1.5 * scale, 1e30, -1e30])
    steps = x.numpy() * np.float32(1.0 / np.float32(scale))
    expected = np.clip(np.rint(steps) + zero_point, 0, 255).astype(np.uint8)
    assert torch.equal(quantize(x, float(np.float32(scale)), zero_point), torch.from_numpy(expected))


def test_infinities_saturate() -> None:
    assert quantize(torch.tensor([float("inf"), float("-inf")]), 0.1, 3).tolist() == [255, 0]


@pytest.mark.parametrize("zero_point", [0, 57, 255])
def test_every_code_survives_a_round_trip(zero_point: int) -> None:
    q = torch.arange(256, dtype=torch.uint8)
    real = dequantize(q, 0.0123, zero_point)
    assert real.dtype is torch.float32
    assert torch.equal(real, (q.to(torch.float32) - zero_point) * 0.0123)
    assert torch.equal(quantize(real, 0.0123, zero_point), q)


def test_layout_and_empty_batches_are_kept_and_arguments_are_not_modified() -> None:
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    before = x.clone()
    q = quantize(x, 0.1, 7)
    kept = q.clone()
    assert q.is_contiguous(memory_format=torch.channels_last)
    assert dequantize(q, 0.1, 7).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)
    assert torch.equal(q, kept)
    assert quantize(x[:0], 0.1, 7).shape == (0, 3, 4, 5)
    assert quantize(x.to(torch.bfloat16), 0.1, 7).dtype is torch.uint8


def _round_trip() -> fx.GraphModule:
    graph = fx.Graph()
    q = graph.call_function(quantize, (graph.placeholder("x"), 0.1, 3))
    graph.output(graph.call_function(dequantize, (q, 0.1, 3)))
    return fx.GraphModule(nn.Module(), graph)


def _targets(gm: fx.GraphModule) -> list[object]:
    return [n.target for n in gm.graph.nodes if n.op == "call_function"]


def test_tracing_copying_and_saving_keep_the_calls() -> None:
    gm = _round_trip()
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    for again in (gm, copy.deepcopy(gm), fx.symbolic_trace(gm), torch.load(file, weights_only=False)):
        assert _targets(again) == [quantize, dequantize]
        assert torch.equal(again(x), dequantize(quantize(x, 0.1, 3), 0.1, 3))
