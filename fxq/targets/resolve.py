"""What runs the int8 graph on this machine."""

from __future__ import annotations

from fxq.errors import TargetError, nearest
from fxq.nn import onednn_unavailable_reason

TARGETS = ("onednn", "reference")


def resolve_target(target: str) -> str:
    """Return the target that a name stands for; ``"auto"`` is the best that this machine can run.

    Raises:
        TargetError: the name is unknown (the nearest are suggested), or this machine cannot run the target.
    """
    if target == "auto":
        return "reference" if onednn_unavailable_reason() else "onednn"
    if target not in TARGETS:
        raise TargetError(f"unknown target {target!r}", fix=nearest(str(target), ("auto", *TARGETS)))
    reason = onednn_unavailable_reason() if target == "onednn" else None
    if reason:
        raise TargetError(f"this machine cannot run the target {target!r}", why=reason,
                          fix="use target='reference', which runs everywhere, or target='auto'")  # fmt: skip
    return target
