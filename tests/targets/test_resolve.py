from __future__ import annotations

import pytest

from fxq.engine import library
from fxq.errors import TargetError
from fxq.targets import resolve, resolve_target
from fxq.targets.resolve import module_backend


def test_known_targets() -> None:
    assert resolve_target("reference") == "reference"
    assert resolve_target("auto") in ("reference", "onednn", "native")


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(TargetError, match=r"unknown target 'onedn'\n.*did you mean 'onednn'"):
        resolve_target("onedn")
    with pytest.raises(TargetError, match=r"known: 'auto', 'native', 'onednn', 'reference'"):
        resolve_target("xyz")


def test_a_machine_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "onednn_unavailable_reason", lambda *_: "no AVX2")
    monkeypatch.setattr(library, "unavailable_reason", lambda: "it was not built")
    assert resolve_target("auto") == "reference"
    with pytest.raises(TargetError, match=r"(?s)cannot run the target 'onednn'.*no AVX2.*target='reference'"):
        resolve_target("onednn")
    with pytest.raises(TargetError, match=r"(?s)cannot run the target 'native'.*not built.*target='reference'"):
        resolve_target("native")


@pytest.mark.parametrize(
    ("isa", "reason"), [("avx3", "unknown instruction set 'avx3'"), ("amx", "does not run the instruction set 'amx'")]
)
def test_an_instruction_set_that_cannot_run_is_no_reason_to_run_slowly(
    monkeypatch: pytest.MonkeyPatch, isa: str, reason: str
) -> None:
    monkeypatch.setattr(library, "available", lambda: ("portable", "avx2"))
    monkeypatch.setenv(library.ISA_VARIABLE, isa)
    for target in ("auto", "native"):
        with pytest.raises(TargetError, match=rf"{reason}\n.*FXQ_ISA"):
            resolve_target(target)
    assert resolve_target("reference") == "reference"


def test_the_engine_runs_what_it_can_and_the_best_modules_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "unavailable_reason", lambda: None)
    monkeypatch.setattr(library, "available", lambda: ("portable", "avx2"))
    monkeypatch.setattr(resolve, "onednn_unavailable_reason", lambda *_: None)
    assert resolve_target("auto") == "native"
    assert module_backend("native") == "onednn"
    monkeypatch.setattr(resolve, "onednn_unavailable_reason", lambda *_: "no AVX2")
    assert module_backend("native") == "reference"
    monkeypatch.setattr(library, "available", lambda: ("portable",))
    assert resolve_target("auto") == "reference"
