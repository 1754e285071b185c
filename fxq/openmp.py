"""The OpenMP runtime that PyTorch runs its operators on, for compiled code that borrows its threads."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import torch


class OpenMP(NamedTuple):
    """Addresses of GNU's entry points, which LLVM's and Intel's runtimes have too."""

    parallel: int
    number: int
    threads: int


_NAMES: Final = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def openmp() -> OpenMP | None:
    """Return where torch's runtime is; its symbols are found through torch's module. None where it has none.

    None in a forked child: GNU's runtime may wait there for ever for threads that only the parent has.
    """
    if _is_forked():
        return None
    module = ctypes.CDLL(torch._C.__file__)
    try:
        functions = [getattr(module, name) for name in _NAMES]
    except AttributeError:
        return None
    return OpenMP(*(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions))


@contextmanager
def without_torch_threads() -> Iterator[None]:
    """In a forked child let torch compute on the calling thread: GNU's runtime may wait for threads of the parent."""
    if not _is_forked():
        yield
        return
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


_forks: list[bool] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(True))


def _is_forked() -> bool:
    """Whether this process was forked since this module was imported, or by multiprocessing before."""
    spawned = "__mp_main__" in sys.modules  # the parent's script, which children that were not forked import anew
    return bool(_forks) or (multiprocessing.parent_process() is not None and not spawned)
