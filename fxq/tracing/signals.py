"""How the parts of the tracer tell each other that a line cannot be traced. Never leaves ``fxq.tracing``."""

from __future__ import annotations

from types import FrameType


class UntraceableError(TypeError):
    """A traced value was used in a way that a graph cannot express.

    A ``TypeError``, because that is what Python raises for the same operation on a value that lacks it, and because
    code such as ``try: iter(x) except TypeError`` then takes the path that it takes for a single value.
    """

    def __init__(self, reason: str, fix: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


class SizeBranchError(UntraceableError):
    """Control flow depends on sizes: the trace succeeds once the example's way is followed, under a check."""


class BuiltinNeededError(UntraceableError):
    """A builtin that must return a Python number met a traced value: the trace succeeds once it is replaced."""

    def __init__(self, name: str, frame: FrameType) -> None:
        super().__init__(f"{name}() is applied to a value that is only known when the model runs")
        self.name = name
        self.globals = frame.f_globals
        self.code = frame.f_code
