"""The folders' promises: imports go one way, and passes/ holds one pass a file."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

import fxq.passes

ROOT = Path(__file__).parent.parent
TOPS = {"fxq": "fxq", "passes": "fxq.passes", "visualize": "fxq.visualize"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for top, name in TOPS.items():
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            yield ".".join((name, *parts)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """Everything of fxq that a module imports anywhere, inside functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "fxq":
            yield from (f"fxq.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def folder(module: str) -> str:
    """``fxq.ir.ops`` lies in ``fxq.ir``; ``fxq`` and the modules beside its ``__init__`` stand for themselves."""
    return ".".join(module.split(".")[:2]).removesuffix(".__init__")


def test_imports_go_one_way() -> None:
    graph = nx.DiGraph(
        (folder(module), folder(name))
        for module, tree in modules()
        for name in imported(tree)
        if name.split(".")[0] == "fxq" and folder(name) != folder(module)
    )
    assert len(graph) > 20
    assert [cycle for cycle in nx.strongly_connected_components(graph) if len(cycle) > 1] == []


def words(name: str) -> str:
    """``FoldBatchNorm`` in small letters: ``fold_batch_norm``."""
    return re.sub("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def test_a_pass_has_a_file_of_its_own() -> None:
    """What several passes share lies in the folders beside them."""
    for path in sorted((ROOT / "passes").glob("*.py")):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"fxq.passes.{path.stem}")
        made_here = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        passes = [c for c in made_here if issubclass(c, fxq.passes.Pass)]
        assert len(passes) == 1, path
        assert words(passes[0].__name__) == path.stem
        assert getattr(fxq.passes, passes[0].__name__) is passes[0]
