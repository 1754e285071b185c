"""Import torchvision beside a CPU-only torch.

The torchvision wheel on PyPI is built against CUDA. Beside a CPU-only torch its C++ extension does not load, and the
import then fails because it attaches shape functions to two operators that only the extension declares. Declaring
those two schemas first is enough: no network in the classification zoo ever calls them.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

FIX = "pip install -c constraints.txt -r benchmarks/requirements.txt"

# What torchvision's own C++ declares and its Python half expects to find.
_SCHEMAS = (
    ("nms", "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ("qnms", "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
)

# A torch.library.Library withdraws its operators when it is collected, so it has to live as long as the process.
_LIBRARIES: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return the torchvision module, declaring its missing operators when its extension cannot be loaded.

    Calling it again is harmless.

    Raises:
        ImportError: torchvision is not installed, or does not fit the installed torch; the message says what mends it.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ImportError(f"torchvision cannot be imported ({error}); run: {FIX}") from error
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise ImportError(f"torchvision does not fit torch {torch.__version__} ({error}); run: {FIX}") from error
    _forget_half_import()
    _declare_operators()
    try:
        return importlib.import_module("torchvision")
    except (RuntimeError, AttributeError) as error:
        raise ImportError(f"torchvision does not fit torch {torch.__version__} ({error}); run: {FIX}") from error


def _forget_half_import() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


def _declare_operators() -> None:
    if _LIBRARIES:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _LIBRARIES.append(library)
