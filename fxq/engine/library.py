"""The engine's shared library: finding and loading it, and which instruction sets this machine runs."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from fxq.engine import abi
from fxq.errors import TargetError, nearest
from fxq.extensions import extension_file
from fxq.openmp import openmp

#: Slowest first.
ISAS = ("portable", "avx2", "avxvnni", "avx512vnni", "amx")
#: The environment variable that forces an instruction set.
ISA_VARIABLE = "FXQ_ISA"
_FOLDER = Path(__file__).parent
_GET_IT = (
    "the engine is compiled when fxq is installed: install g++ or clang (Debian, Ubuntu: apt install g++), then "
    "reinstall fxq (in a checkout: pip install -e . --force-reinstall --no-deps)"
)


def path() -> Path | None:
    """Return the library's file, None where the engine was not built."""
    return extension_file(_FOLDER, "_native")


@functools.cache
def load() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        TargetError: the engine was not built, cannot be loaded, or is of another version than the Python files.
    """
    file = path()
    if file is None:
        raise TargetError("fxq's native engine is not there", why="it was not built", fix=_GET_IT)
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise TargetError("fxq's native engine cannot be loaded", why=str(error), fix=_GET_IT) from error
    if not hasattr(library, "fxq_abi_version") or library.fxq_abi_version() != abi.VERSION:
        raise TargetError("fxq's native engine is of another version", where=str(file), fix=_GET_IT)
    _declare(library)
    _lend_threads(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    program, text = ctypes.c_void_p, ctypes.c_char_p
    library.fxq_runs.argtypes = [text]
    library.fxq_create.restype = program
    library.fxq_create.argtypes = [
        ctypes.POINTER(abi.Header), ctypes.POINTER(abi.Tensor), ctypes.POINTER(abi.Operation),
        ctypes.POINTER(abi.Constant), text, text, ctypes.c_size_t,
    ]  # fmt: skip
    library.fxq_destroy.restype = None
    library.fxq_destroy.argtypes = [program]
    library.fxq_run.argtypes = [
        program, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p, text, ctypes.c_size_t,
    ]  # fmt: skip
    library.fxq_openmp.restype = None
    library.fxq_openmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    for name in ("fxq_held_bytes", "fxq_packed_bytes"):
        function = getattr(library, name)
        function.restype = ctypes.c_int64
        function.argtypes = [program]


def _lend_threads(library: ctypes.CDLL) -> None:
    """Tell the engine where torch's OpenMP runtime is, if it has one."""
    found = openmp()
    if found is not None:
        library.fxq_openmp(found.parallel, found.number)


def unavailable_reason() -> str | None:
    """Return why the engine cannot be used, None where it can."""
    try:
        load()
    except TargetError as error:
        return str(error)
    return None


def available() -> tuple[str, ...]:
    """Return the instruction sets that this machine runs, slowest first."""
    library = load()
    return tuple(isa for isa in ISAS if library.fxq_runs(isa.encode()))


def choose(isa: str | None = None) -> str:
    """Return ``isa``, else what the environment variable FXQ_ISA says, else the best that this machine runs.

    Raises:
        TargetError: the engine is not there, or the instruction set is unknown or not run by this machine.
    """
    wanted = isa or os.environ.get(ISA_VARIABLE) or None
    known = available()
    if wanted is None:
        return known[-1]
    if wanted not in ISAS:
        raise TargetError(f"unknown instruction set {wanted!r}", where=ISA_VARIABLE, fix=nearest(wanted, ISAS))
    if wanted not in known:
        raise TargetError(
            f"this machine does not run the instruction set {wanted!r}",
            where=ISA_VARIABLE,
            fix="choose one of " + ", ".join(known),
        )
    return wanted
