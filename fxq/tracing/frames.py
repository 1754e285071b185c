"""Which line of the user's code is being traced: frames of torch and of this package are passed over."""

from __future__ import annotations

import inspect
import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


@dataclass(frozen=True)
class SourceLine:
    """A line of the user's code: the full path of its file, its number, the function it is in, and its text."""

    path: str
    line: int
    function: str
    text: str

    @property
    def short(self) -> str:
        """``"file.py:123"``."""
        return f"{Path(self.path).name}:{self.line}"


def is_user_code(code: CodeType) -> bool:
    """Whether ``code`` belongs neither to torch nor to the tracer."""
    return not code.co_filename.startswith((_TORCH, _HERE, "<frozen"))


def user_frame(stop: CodeType | None = None) -> FrameType | None:
    """Return the innermost frame of the user's code above the caller, below the frame that runs ``stop``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not stop:
        if is_user_code(frame.f_code) and not _is_generated(frame.f_code):
            return frame
        frame = frame.f_back
    return None


def is_running(code: CodeType) -> bool:
    """Whether a frame above the caller, in this thread, runs ``code``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def line_of_frame(frame: FrameType) -> SourceLine:
    """Return the line that ``frame`` is executing."""
    return _line(frame.f_code, frame.f_lineno)


def line_of_traceback(traceback: TracebackType | None, stop: CodeType | None = None) -> SourceLine | None:
    """Return the innermost line of the user's code in ``traceback``; inside the frame that runs ``stop``, if given."""
    found: SourceLine | None = None
    inside = stop is None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        inside = inside or code is stop
        if inside and is_user_code(code) and not _is_generated(code):
            found = _line(code, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def line_of_forward(module: nn.Module) -> SourceLine:
    """Return the first line of the ``forward`` that ``module`` runs; a line of torch for torch's own modules."""
    function = inspect.unwrap(getattr(module.forward, "__func__", module.forward))
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return SourceLine("<unknown>", 0, "forward", "")
    return _line(code, code.co_firstlineno)


def _is_generated(code: CodeType) -> bool:
    """Code that torch.fx wrote for a graph module."""
    return "<eval_with_key>" in code.co_filename


def _line(code: CodeType, number: int) -> SourceLine:
    if _is_generated(code):
        return SourceLine("<graph>", number, code.co_name, "")
    return SourceLine(code.co_filename, number, code.co_name, linecache.getline(code.co_filename, number).strip())
