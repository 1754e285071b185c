from __future__ import annotations

import pytest

from fxq.errors import TargetError
from fxq.targets import resolve, resolve_target


def test_known_targets() -> None:
    assert resolve_target("reference") == "reference"
    assert resolve_target("auto") in ("reference", "onednn")


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'onedn'\n.*did you mean 'onednn'"):
        resolve_target("onedn")
    with pytest.raises(TargetError, match=r"known: 'auto', 'native', 'onednn', 'reference'"):
        resolve_target("xyz")


def test_a_machine_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "onednn_unavailable_reason", lambda: "no AVX2")
    assert resolve_target("auto") == "reference"
    with pytest.raises(TargetError, match=r"(?s)cannot run the target 'onednn'.*no AVX2.*target='reference'"):
        resolve_target("onednn")
