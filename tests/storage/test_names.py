from __future__ import annotations

import pytest
import torch
from torch import nn

from fxq.ir.ops import FUNCTIONS
from fxq.ir.ops import METHODS as TABLE_METHODS
from fxq.storage.names import is_attribute, is_identifier, is_path, is_placeholder
from fxq.storage.operations import METHODS, function_name, function_named, functions
from fxq.tracing.constructors import CONSTRUCTORS, RANDOM_CONSTRUCTORS


@pytest.mark.parametrize("name", ["x", "_x", "add_1", "A9", "_tensor_constant0"])
def test_plain_names(name: str) -> None:
    assert is_identifier(name)
    assert is_attribute(name)
    assert is_placeholder(name)
    assert is_path(f"{name}.{name}")


@pytest.mark.parametrize(
    "name", ["", "a b", "a.b", "1a\n", "a;b", "é", "class", "None", "__x", "__class__", "x" * 2000, "a'"]
)
def test_names_that_are_none(name: str) -> None:
    assert not is_identifier(name)
    assert not is_attribute(name)
    assert not is_placeholder(name)


def test_names_that_are_taken() -> None:
    module = nn.Module()
    graphs = ("graph", "meta", "code", "_graph", "_code")
    for name in (*graphs, "forward", "training", "_modules", "state_dict", "__call__"):
        assert not is_attribute(name)
        assert name in graphs or hasattr(module, name)


def test_digits_and_hyphens_are_attributes_but_no_variables() -> None:
    for name in ("0", "12", "conv-1", "1x1"):
        assert is_attribute(name)
        assert not is_identifier(name)


def test_stars() -> None:
    assert is_placeholder("*args")
    assert is_placeholder("**kwargs")
    for name in ("***x", "*", "* x", "*self", "self", "x*", "*class"):
        assert not is_placeholder(name)


def test_paths() -> None:
    for path in ("", ".", "a..b", "a.", "../a", "a/b", "a.b c", 'a");x=("', "a" * 3000):
        assert not is_path(path)


def test_every_function_of_the_table_and_of_the_tracer_can_be_saved() -> None:
    known = [*FUNCTIONS, *CONSTRUCTORS, *(getattr(torch, name) for name in RANDOM_CONSTRUCTORS)]
    for function in known:
        name = function_name(function)
        assert name is not None, function
        assert function_named(name, "here") is function
    assert set(TABLE_METHODS) <= METHODS


DANGEROUS = """
load save eval exec compile open import set from_file setattr attrgetter methodcaller call system resize apply map
data_ptr register_hook numpy
""".split()  # noqa: SIM905


def test_no_function_that_reaches_beyond_values() -> None:
    for name in (*functions(), *METHODS):
        assert name.rpartition(".")[2].strip("_") not in DANGEROUS
    assert all(not m.startswith("__") or m[2:-2] in ("getitem", "setitem") or m.startswith("__i") for m in METHODS)


def test_what_cannot_be_hashed_has_no_name() -> None:
    class Callable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> None: ...

    assert function_name(Callable()) is None
