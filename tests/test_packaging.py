"""The package as it is installed: every folder is listed, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("onnx", "onnxruntime", "onnxscript", "torchvision", "sklearn", "openvino", "nncf", "torchao", "matplotlib",
          "pandas")  # fmt: skip


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_folder_is_listed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {"passes": "fxq.passes", "visualize": "fxq.visualize"}
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fxq").rglob("__init__.py")}
    for folder, name in folders.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *path.parent.relative_to(ROOT / folder).parts)))
    assert set(settings["packages"]) == found
    assert settings["package-dir"] == {name: folder for folder, name in folders.items()}


def test_every_folder_with_code_is_a_package() -> None:
    for top in ("fxq", "passes", "visualize"):
        for path in (ROOT / top).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path


def test_the_folders_at_the_top_are_imported_under_fxq_only() -> None:
    for folder in ("passes", "visualize"):
        code = f"try:\n import {folder}\nexcept ImportError as error:\n print(error)"
        assert f"import this package as fxq.{folder}" in run(code)


def test_importing_fxq_imports_no_extra() -> None:
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fxq\n"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))\n"
        "print(*[m for m in set(sys.modules) - before if m.startswith('torch.ao.quantization')])"
    )
    new, *quantisation = run(code).splitlines()
    assert not set(new.split()) & set(EXTRAS)
    assert "fxq" in new.split()
    assert "".join(quantisation) == "", "torch's deprecated quantisation"


def test_the_version_is_the_project_s() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("import fxq; print(fxq.__version__)") == wanted
