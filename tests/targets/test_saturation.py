"""Weights of 7 bits where a CPU's instructions saturate those of 8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import fxq
from fxq.nn import onednn_available, onednn_unavailable_reason
from fxq.nn.qlayer import QLayer
from fxq.pipelines import int8_pipeline
from fxq.quant.qparams import REDUCED_WEIGHT_MAX
from fxq.targets.saturation import guarded, why_reduced

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 5)).eval()
    with torch.no_grad():
        model.get_parameter("2.weight").abs_()  # its products all have one sign: they would saturate
    return model


def largest_code(gm: torch.fx.GraphModule) -> int:
    weights = [m.weight for m in gm.modules() if isinstance(m, QLayer)]
    assert len(weights) == 3
    return max(int(w.int().abs().max()) for w in weights)


def test_two_products_of_7_bits_fit_into_16_and_two_of_8_do_not() -> None:
    assert 2 * 255 * REDUCED_WEIGHT_MAX < 2**15
    assert -2 * 255 * REDUCED_WEIGHT_MAX >= -(2**15)
    assert 2 * 255 * 127 >= 2**15


@pytest.mark.parametrize(
    ("target", "flags", "reduced"),
    [
        ("onednn", ["avx2", "fma"], True),
        ("onednn", ["avx2", "avx512f", "avx512bw"], True),
        ("onednn", ["avx2", "avx_vnni"], False),
        ("onednn", ["avx512f", "avx512_vnni"], False),
        ("onednn", ["amx_int8"], False),
        ("reference", ["avx2"], False),
        ("native", ["avx2"], False),
    ],
)
def test_the_flags_of_the_cpu_decide_for_the_target_that_saturates(
    target: str, flags: list[str], reduced: bool
) -> None:
    assert (why_reduced(target, flags) is not None) is reduced
    assert guarded(fxq.Recipe(), target, flags).reduce_range is reduced
    for own in (True, False):
        assert guarded(fxq.Recipe(reduce_range=own), target, flags).reduce_range is own


@pytest.mark.parametrize("weight_range", ["minmax", "mse"])
@pytest.mark.parametrize("weight", ["per_channel", "per_tensor"])
def test_weights_of_7_bits_span_their_whole_range(weight: str, weight_range: str) -> None:
    recipe = fxq.Recipe(weight=weight, weight_range=weight_range, reduce_range=True)
    compiled = fxq.compile(network(), calibration=[X], recipe=recipe, target="reference")
    assert largest_code(compiled) == REDUCED_WEIGHT_MAX
    assert "weights of 7 bits" in str(fxq.report(compiled))
    full = fxq.compile(network(), calibration=[X], target="reference")
    assert largest_code(full) == 127
    assert "7 bits" not in str(fxq.report(full))


def test_every_pass_that_rounds_weights_has_the_guarded_recipe() -> None:
    recipe = guarded(fxq.Recipe(), "onednn", ["avx2"])
    given = [p.recipe for p in int8_pipeline(recipe, "reference").passes if hasattr(p, "recipe")]
    assert len(given) >= 3
    assert all(r.reduce_range is True for r in given)


_RUN = """
import json, sys, torch, fxq
from tests.targets.test_saturation import X, largest_code, network
from fxq.nn import onednn_unavailable_reason
torch.set_num_threads(1)
found = {"8": onednn_unavailable_reason(), "7": onednn_unavailable_reason(63)}
for name, reduce in (("auto", None), ("full", False)):
    recipe = fxq.Recipe(reduce_range=reduce)
    fast, right = (fxq.compile(network(), calibration=[X], recipe=fxq.Recipe(reduce_range=reduce), target=t)
                   for t in ("onednn", "reference"))
    if reduce is None:
        right = fxq.compile(network(), calibration=[X], recipe=fxq.Recipe(reduce_range=True), target="reference")
    with torch.inference_mode():
        error = (fast(X) - right(X)).abs().max() / right(X).abs().max()
    kernels = [layer.kernel for layer in fxq.report(fast).layers if layer.kind in ("QConv2d", "QLinear")]
    found[name] = [float(error), largest_code(fast), "7 bits" in str(fxq.report(fast)), kernels]
print(json.dumps(found))
"""


@pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))
def test_on_a_cpu_without_vnni_the_operators_are_exact_and_the_report_says_why() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    run = subprocess.run([sys.executable, "-c", _RUN], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert "no VNNI instructions" in found["8"]
    assert found["7"] is None
    error, largest, told, kernels = found["auto"]
    assert (largest, told) == (63, True)
    assert error < 0.02
    assert any("onednn" in k for k in kernels)
    error, largest, told, kernels = found["full"]  # asked for: right all the same, by the reference kernels
    assert (largest, told) == (127, False)
    assert error < 0.02
    assert not any("onednn" in k for k in kernels)
