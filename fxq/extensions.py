"""Where the compiled libraries lie that are built with the package, each beside the module that loads it."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


def extension_file(folder: Path, name: str) -> Path | None:
    """Return the file of the library ``name`` in ``folder``, None where it was not built."""
    files = (folder / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.is_file()), None)
