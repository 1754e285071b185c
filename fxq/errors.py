"""Every error that fxq raises on purpose: what happened, where, why, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FxqError(Exception):
    """Base of all fxq errors.

    Args:
        what: one sentence that says what went wrong.
        where: the module path, node, file or batch that it concerns.
        why: the cause, where it is not plain from ``what``.
        fix: what the reader can do.

    ``str(error)`` shows the parts that are given, one a line.
    """

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.why = why
        self.fix = fix
        parts = [what]
        parts += [f"  {label}: {text}" for label, text in (("where", where), ("why", why), ("fix", fix)) if text]
        super().__init__("\n".join(parts))


class TraceError(FxqError):
    """A model cannot be captured as a graph."""


class InputError(FxqError, ValueError):
    """An argument, an example input or a model is not usable as given."""


class CalibrationError(InputError):
    """Calibration data is missing, empty, does not fit the model, or is not finite."""


class TargetError(FxqError, RuntimeError):
    """A target is unknown or this machine cannot run it."""


class StorageError(FxqError, ValueError):
    """A file cannot be loaded: it is damaged, not one of fxq's, or holds what fxq does not run."""


class GraphError(FxqError):
    """A graph breaks a rule of its stage, or an edit would break it."""


class PassError(FxqError):
    """A pass failed. ``report`` holds the record of everything up to and including it."""

    report: object | None = None


class VerifyError(PassError):
    """A pass ran, but what it produced does not hold what it promises."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a sentence that lists the names in ``known`` closest to ``name``, for the ``fix`` of an error."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(f"{c!r}" for c in close) + "?"
    return "known: " + ", ".join(repr(n) for n in names)
