"""What runs the int8 graph on this machine."""

from __future__ import annotations

from fxq.engine import library
from fxq.errors import TargetError, nearest
from fxq.nn import onednn_unavailable_reason
from fxq.quant.qparams import REDUCED_WEIGHT_MAX

TARGETS = ("native", "onednn", "reference")


def resolve_target(target: str) -> str:
    """Return the target that a name stands for; ``"auto"`` is the best that this machine can run.

    Raises:
        TargetError: the name is unknown (the nearest are suggested), or this machine cannot run the target; the
            environment variable FXQ_ISA asks for an instruction set that the engine or this machine lacks.
    """
    if target in ("auto", "native") and _why_not("native") is None:
        library.choose()  # else the engine would refuse each part of the graph, and slower kernels would take all
    if target == "auto":
        if _why_not("native") is None and library.available()[-1] != "portable":
            return "native"
        return next(t for t in ("onednn", "reference") if _why_not(t) is None)
    if target not in TARGETS:
        raise TargetError(f"unknown target {target!r}", fix=nearest(str(target), ("auto", *TARGETS)))
    reason = _why_not(target)
    if reason:
        raise TargetError(f"this machine cannot run the target {target!r}", why=reason,
                          fix="use target='reference', which runs everywhere, or target='auto'")  # fmt: skip
    return target


def module_backend(target: str) -> str:
    """Return what runs single int8 modules where ``target`` runs the graph: the engine runs none by itself.

    Raises:
        TargetError: as :func:`resolve_target` does.
    """
    resolved = resolve_target(target)
    if resolved != "native":
        return resolved
    return "reference" if _why_not("onednn") else "onednn"


def _why_not(target: str) -> str | None:
    if target == "onednn":  # weights of 7 bits will do: see saturation.py
        return onednn_unavailable_reason(REDUCED_WEIGHT_MAX)
    return library.unavailable_reason() if target == "native" else None
