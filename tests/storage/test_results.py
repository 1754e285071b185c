"""Models that return dataclasses, named tuples and dataclasses that are dicts: saved without the class, and again."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError, StorageError
from fxq.storage import load, save
from tests.storage.forge import Forged


@dataclasses.dataclass
class Output:
    logits: Any
    hidden: Any = None
    parts: Any = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    first: Any
    second: Any = 2


class LikeTransformers(OrderedDict[str, Any]):
    """As the outputs of the transformers library are: a dict of the fields that are not None."""

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # type: ignore[arg-type]
            if getattr(self, entry.name) is not None:
                self[entry.name] = getattr(self, entry.name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclasses.dataclass
class ModelOutput(LikeTransformers):
    loss: Any = None
    logits: Any = None
    hidden: Any = None


class Model(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(3, 2), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.fc(x))


MAKERS: dict[str, Callable[[Tensor], Any]] = {
    "dataclass": lambda y: Output(y, hidden=(y, None)),
    "named tuple": lambda y: Pair(y),
    "mapping": lambda y: ModelOutput(logits=y, hidden=[y, y + 1]),
    "nested": lambda y: {"all": [Output(Pair(y, "x"), hidden=Output(1.5)), y], "none": Output(None)},
    "ordered": lambda y: OrderedDict(b=y, a=y + 1),
}
CLASSES = (Output, Pair, ModelOutput)


def graph_of(name: str) -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.trace(Model(MAKERS[name]).eval(), inputs())


def inputs() -> Tensor:
    return torch.ones(2, 3)


def flat(value: Any) -> Any:
    """A result as text without memory addresses: names of classes and fields, and every number."""
    with torch.no_grad():
        return repr(value)


@pytest.mark.parametrize("name", MAKERS)
def test_an_equivalent_comes_back_and_goes_on(name: str, tmp_path: Path) -> None:
    gm = graph_of(name)
    save(gm, tmp_path / "a")
    with torch.no_grad():
        expected, loaded = gm(inputs()), load(tmp_path / "a")
        assert flat(loaded(inputs())) == flat(expected)
        for other in (copy.deepcopy(loaded), pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(loaded))))):
            assert flat(other(inputs())) == flat(expected)
        compiled = fxq.compile(loaded, inputs())
        assert flat(compiled(inputs())) == flat(expected)
    save(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_a_dataclass_becomes(tmp_path: Path) -> None:
    save(graph_of("dataclass"), tmp_path / "m")
    out = load(tmp_path / "m")(inputs())
    assert type(out).__name__ == "Output"
    assert [entry.name for entry in dataclasses.fields(out)] == ["logits", "hidden", "parts"]
    assert out.hidden[0] is out.logits
    assert out == copy.copy(out)
    assert out != dataclasses.replace(out, parts=[1])
    assert dataclasses.asdict(pickle.loads(pickle.dumps(out)))["parts"] == []


def test_what_a_named_tuple_becomes(tmp_path: Path) -> None:
    save(graph_of("named tuple"), tmp_path / "m")
    out = load(tmp_path / "m")(inputs())
    first, second = out
    assert isinstance(out, tuple)
    assert first is out.first
    assert second == out[1] == 2
    assert out._fields == ("first", "second")
    assert pickle.loads(pickle.dumps(out))._asdict()["second"] == 2


def test_what_a_mapping_becomes(tmp_path: Path) -> None:
    save(graph_of("mapping"), tmp_path / "m")
    out = load(tmp_path / "m")(inputs())
    assert list(out) == ["logits", "hidden"]
    assert out.loss is None
    assert out["logits"] is out[0] is out.logits
    assert out[1:] == (out.hidden,) == out.to_tuple()[1:]
    out.logits = 5
    assert out["logits"] == 5
    out["hidden"] = 6
    assert (out.hidden, out.to_tuple()) == (6, (5, 6))
    assert pickle.loads(pickle.dumps(out)) == out


@pytest.mark.parametrize("name", MAKERS)
def test_the_class_itself_comes_back_where_it_is_given(name: str, tmp_path: Path) -> None:
    gm = graph_of(name)
    save(gm, tmp_path / "a")
    made = [cls for cls in CLASSES if any(node.target is cls for node in gm.graph.nodes)]
    loaded = load(tmp_path / "a", classes=made)
    assert {n.target for n in loaded.graph.nodes if isinstance(n.target, type)} - {OrderedDict} == set(made)
    assert type(loaded(inputs())) is type(gm(inputs()))
    save(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _other() -> type:
    return dataclasses.make_dataclass("Output", ["logits", "more"])


@pytest.mark.parametrize(
    ("classes", "text"),
    [([Pair], "no result of the class Pair(.|\n)*its results are: Output"), ([_other()], "not the one that was saved"),
     ([Output, _other()], "two classes"), ([int], "neither a dataclass"), ([5], "neither a dataclass")],
)  # fmt: skip
def test_classes_that_do_not_fit(classes: Any, text: str, tmp_path: Path) -> None:
    save(graph_of("dataclass"), tmp_path / "m")
    with pytest.raises(InputError, match=text):
        load(tmp_path / "m", classes=classes)


@pytest.mark.parametrize(
    "args",
    [[], ["class", "Output", {"tuple": []}], ["dataclass", "import os", {"tuple": []}], ["dataclass", "A", ["b"], 1],
     ["dataclass", "Output", {"tuple": ["a", "a"]}, 1, 2], ["named_tuple", "Output", {"tuple": ["_a"]}, 1],
     ["named_tuple", "Output", {"tuple": ["__class__"]}, 1], ["dataclass", "Output", {"tuple": ["a"]}],
     ["dataclass", "A", {"tuple": ["a=print(1)"]}, 1], ["dataclass", 5, {"tuple": ["a"]}, 1],
     [["dataclass"], "A", {"tuple": ["a"]}, 1], ["dataclass", "A", {"tuple": [{"node": 0}]}, 1]],
    ids=repr,
)  # fmt: skip
def test_names_that_no_class_has(args: Any, tmp_path: Path) -> None:
    save(graph_of("dataclass"), tmp_path / "m")
    forged = Forged.read(tmp_path / "m")
    next(n for n in forged.graph["nodes"] if n["target"] == "fxq.nn.named_result")["args"] = args
    with pytest.raises(StorageError):
        load(forged.write(tmp_path / "m"))


_PROCESS = """
import pathlib, sys, torch
import fxq
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.fxq")):
    print(repr(fxq.load(path).eval()(torch.ones(2, 3))).replace(", grad_fn=<AddmmBackward0>", ""))
assert not any(m.startswith("tests") for m in sys.modules)
"""


def test_a_fresh_process_needs_no_class(tmp_path: Path) -> None:
    expected = []
    for name in sorted(MAKERS):
        gm = graph_of(name)
        for parameter in gm.parameters():
            parameter.requires_grad_(False)
        save(gm, tmp_path / f"{name}.fxq")
        expected.append(repr(gm(inputs())))
    root = Path(fxq.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", _PROCESS, str(tmp_path)], capture_output=True, text=True, timeout=300,
                          cwd=root)  # fmt: skip
    assert done.stdout == "\n".join(expected) + "\n", done.stderr
