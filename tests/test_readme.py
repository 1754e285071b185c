"""The README shows what there is."""

from __future__ import annotations

import re
from pathlib import Path

import fxq

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_is_the_file_that_it_names() -> None:
    example = (_ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    blocks = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
    assert blocks[0].strip() == example.strip()


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", _README)
    assert links
    assert [link for link in links if not (_ROOT / link).exists()] == []


def test_every_public_name_in_the_table_exists() -> None:
    names = re.findall(r"`fxq\.(\w+)", _README)
    assert len(set(names)) > 8
    assert [name for name in names if not hasattr(fxq, name)] == []
