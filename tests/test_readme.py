"""The README shows what there is."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import torch
from torch import nn

import fxq

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_is_the_file_that_it_names() -> None:
    example = (_ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").split('"""\n\n', 1)[1]
    blocks = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)
    assert blocks[0].strip() == example.strip()


def test_the_pass_of_the_contributing_page_works(tmp_path: Path) -> None:
    text = (_ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file = tmp_path / "written_pass.py"
    file.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    spec = importlib.util.spec_from_file_location("written_pass", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["written_pass"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.SiLU()).eval()
    result = module.HardswishForSilu(largest=1)(fxq.trace(model))
    assert len(result.matched) == 1
    assert [r.reason for r in result.refused] == ["1 were replaced already"]
    manager = fxq.pipeline(fxq.Recipe("float"), "reference").insert_before("fuse_activation", module.HardswishForSilu())
    out = fxq.compile(model, torch.randn(1, 3, 8, 8), passes=manager)
    assert "hardswish" in out.get_submodule("0").extra_repr()


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", _README)
    assert links
    assert [link for link in links if not (_ROOT / link).exists()] == []


def test_every_public_name_in_the_table_exists() -> None:
    names = re.findall(r"`fxq\.(\w+)", _README)
    assert len(set(names)) > 8
    assert [name for name in names if not hasattr(fxq, name)] == []
