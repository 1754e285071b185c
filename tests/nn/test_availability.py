"""The self-test of the onednn operators."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fxq.errors import TargetError
from fxq.nn import BACKENDS, kernels, onednn_available, onednn_unavailable_reason

_PRINT_REASON = "from fxq.nn.kernels.availability import onednn_unavailable_reason as f; print(f())"


@pytest.mark.skipif(not onednn_available(), reason=str(onednn_unavailable_reason()))
def test_saturating_instructions_are_found() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", _PRINT_REASON], env=environment, capture_output=True, text=True, check=True
    )
    assert "no VNNI instructions" in run.stdout


def test_a_backend_that_cannot_run_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "onednn_unavailable_reason", lambda largest_weight=127: "no VNNI")
    with pytest.raises(TargetError, match="cannot run the int8 backend 'onednn'\n  why: no VNNI"):
        kernels.kernel_set("onednn")
    assert kernels.kernel_set("reference") is BACKENDS["reference"]
