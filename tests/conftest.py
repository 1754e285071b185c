"""What all tests share: the same random numbers in any order of tests, and golden files.

A golden file is text that a test makes, kept beside the test as ``golden/<name>.txt``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Let no test's random numbers depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Return ``check(name, text)``, which compares a text with its golden file."""
    folder = request.path.parent / "golden"
    update = request.config.getoption("--update-goldens")

    def check(name: str, text: str) -> None:
        path: Path = folder / f"{name}.txt"
        if update:
            folder.mkdir(exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        assert path.exists(), f"no golden file {path.name}: run pytest --update-goldens, and read what it wrote"
        assert text + "\n" == path.read_text(encoding="utf-8"), f"{path.name} differs; --update-goldens writes it anew"

    return check
