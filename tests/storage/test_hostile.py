"""Files that are damaged on purpose: each gives one clear error, before anything large is allocated or runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import InputError, StorageError
from fxq.storage import load, save
from fxq.storage.document import GRAPH
from tests.storage.forge import Forged, with_header


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)
        self.register_buffer("flags", torch.arange(600) % 3 == 0)

    def forward(self, x: Tensor, gain: float = 2.0) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3))) * gain + (self.flags * x.mean()).sum()


def images() -> Tensor:
    return torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Forged:
    torch.manual_seed(0)
    model = Small().eval()
    with torch.no_grad():
        model.conv.weight[::2] = 0
    path = tmp_path_factory.mktemp("saved") / "m.fxq"
    save(fxq.compile(model, images(), calibration=[images()], target="reference"), path)
    return Forged.read(path)


@pytest.fixture
def forged(saved: Forged) -> Forged:
    return copy.deepcopy(saved)


def node(forged: Forged, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in forged.graph["nodes"] if n["name"] == name)
    return found


def call(forged: Forged, op: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in forged.graph["nodes"] if n["op"] == op)
    return found


def module(forged: Forged, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in forged.graph["modules"] if kind in m["type"])
    return found


def tensor(forged: Forged, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in forged.graph["tensors"] if t["name"] == name)
    return found


def test_what_is_not_edited_loads(forged: Forged, tmp_path: Path) -> None:
    assert load(forged.write(tmp_path / "m"))(images()).shape == (2, 3)


NODE_NAMES = ["__class__", "class", "a b", "x = 1", "", "1x", "é", "x\n", "self.x", "print", "x" * 1001, 7, None]
PATHS = ["../conv", "__class__", "forward", "conv.__class__", "", ".", "conv.", "a\");import os;(\"",
         "conv" * 1000, "graph", "_modules"]  # fmt: skip
TARGETS = ["os.system", "builtins.eval", "builtins.exec", "torch.load", "torch.save", "builtins.open", "torch.hub.load",
           "operator.attrgetter", "torch.ops.load_library", "torch.nn.functional", "", 5, ["torch.relu"]]  # fmt: skip
METHODS = [
    "__class__",
    "__reduce__",
    "set_",
    "resize_",
    "data_ptr",
    "numpy",
    "apply_",
    "register_hook",
    "share_memory_",
    "",
]


@pytest.mark.parametrize("name", NODE_NAMES)
def test_names_of_nodes(forged: Forged, tmp_path: Path, name: Any) -> None:
    forged.graph["nodes"][2]["name"] = name
    with pytest.raises(StorageError, match=r"cannot be a variable|expected a string"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("name", [*NODE_NAMES[:-4], "self", "***x", "*", "x: int", "x=__import__('os')"])
def test_names_of_inputs(forged: Forged, tmp_path: Path, name: str) -> None:
    if name == "print":
        pytest.skip("a parameter may be called that")
    call(forged, "placeholder")["target"] = name
    with pytest.raises(StorageError, match="no parameter that a function can have"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", ["call_module", "get_attr"])
def test_paths(forged: Forged, tmp_path: Path, path: str, op: str) -> None:
    found = next(n for n in forged.graph["nodes"] if n["op"] == op)
    found["target"] = path
    with pytest.raises(StorageError, match=r"not made of attribute names|there is no (module|layer|parameter)"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("target", TARGETS)
def test_functions(forged: Forged, tmp_path: Path, target: Any) -> None:
    call(forged, "call_function")["target"] = target
    with pytest.raises(StorageError, match=r"not in the list of functions|expected a string"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("method", METHODS)
def test_methods(forged: Forged, tmp_path: Path, method: str) -> None:
    found = call(forged, "call_function")
    found |= {"op": "call_method", "target": method, "args": [{"node": 0}]}
    with pytest.raises(StorageError, match="not in the list of those that fxq calls"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("name", ["__class__", "data_ptr", "grad_fn", "__dict__", "_backward_hooks", 3])
def test_attributes_that_are_read(forged: Forged, tmp_path: Path, name: Any) -> None:
    call(forged, "call_function").update(target="builtins.getattr", args=[{"node": 0}, name], kwargs={})
    with pytest.raises(StorageError, match="an attribute is read"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize(
    "name", ["__class__", "forward", "training", "_modules", "graph", "a.b", "", "../x", "code", "meta"]
)
@pytest.mark.parametrize("part", ["children", "buffers"])
def test_names_of_attributes(forged: Forged, tmp_path: Path, name: str, part: str) -> None:
    root = forged.graph["modules"][-1]
    root[part] = dict.fromkeys([name], next(iter(root[part].values())))
    with pytest.raises(StorageError, match=r"cannot be an attribute|a value is no module's"):
        load(forged.write(tmp_path / "m"))


@pytest.mark.parametrize("kind", ["torch.nn.modules.module.Module", "builtins.eval", "torch.nn.Lazy", 3, None, "graph"])
def test_types_of_modules(forged: Forged, tmp_path: Path, kind: Any) -> None:
    module(forged, "QConv2d")["type"] = kind
    with pytest.raises(StorageError, match=r"not in the list of those that fxq runs|is the root"):
        load(forged.write(tmp_path / "m"))


Edit = Callable[[Forged], Any]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


EDITS: dict[str, tuple[Edit, str]] = {
    "a reference to itself": (
        lambda f: call(f, "output").update(args=[{"node": len(f.graph["nodes"]) - 1}]), "no earlier node"),
    "a reference forward": (lambda f: call(f, "call_function").update(args=[{"node": 10**9}]), "no earlier node"),
    "two nodes of one name": (lambda f: f.graph["nodes"][2].update(name="x"), "a variable of its own"),
    "a node after the output": (lambda f: f.graph["nodes"].append(f.graph["nodes"][0]), "the output"),
    "no output": (lambda f: f.graph["nodes"].pop(), "is the output"),
    "no nodes": (lambda f: f.graph.update(nodes=[]), "no nodes"),
    "two inputs of one name": (lambda f: node(f, "gain").update(target="x"), "no parameters"),
    "an input without a default behind one with": (
        lambda f: (node(f, "x").update(args=[1]), node(f, "gain").pop("args")), "no parameters"),
    "arguments behind keywords": (lambda f: node(f, "x").update(target="**x"), "no parameters"),
    "deep arguments": (lambda f: call(f, "output").update(args=[_deep(200)]), "nested"),
    "too few arguments": (
        lambda f: (node(f, "add").update(target="operator.add", args=[]), f.graph.pop("examples")),
        "no code for the graph"),
    "too few arguments, with an example": (
        lambda f: node(f, "add").update(target="operator.add", args=[]), "does not go through the graph"),
    "a scale that is NaN": (
        lambda f: module(f, "QConv2d")["settings"]["quantisation"]["input"].update(scale={"float": "nan"}), "QParams"),
    "a scale of zero": (
        lambda f: module(f, "QConv2d")["settings"]["quantisation"]["input"].update(scale=0.0), "QParams"),
    "a zero point of 256": (
        lambda f: module(f, "QConv2d")["settings"]["quantisation"]["input"].update(zero_point=256), "zero_point"),
    "an unknown backend": (lambda f: module(f, "QConv2d")["settings"].update(backend="cuda"), "no int8 backend"),
    "a child of its own": (lambda f: f.graph["modules"][0].update(children={"0": 0}), "expected an integer"),
    "a child that comes later": (lambda f: f.graph["modules"][0].update(children={"0": 99}), "expected an integer"),
    "an unknown dtype": (lambda f: tensor(f, "conv.weight_scale").update(dtype="qint8"), "unknown dtype"),
    "another dtype": (lambda f: tensor(f, "conv.weight_scale").update(dtype="float64"), "is F32, not F64"),
    "an absurd shape": (lambda f: tensor(f, "conv.weight_scale").update(shape=[10**12]), "another shape"),
    "an absurd number of dimensions": (lambda f: tensor(f, "conv.weight_scale").update(shape=[1] * 10**4), "absurd"),
    "a product beyond 64 bits": (lambda f: tensor(f, "conv.weight_scale").update(shape=[2**40, 2**40]), "absurd"),
    "a negative size": (lambda f: tensor(f, "conv.weight_scale").update(shape=[-4]), "expected an integer"),
    "a shape that its layer has not": (lambda f: tensor(f, "conv.weight_scale").update(shape=[2, 2]), "another shape"),
    "an expanded tensor": (lambda f: tensor(f, "flags").update(shape=[2**40]), "not|stand for"),
    "no such entry": (lambda f: tensor(f, "flags").update(name="nothing"), "no entry"),
    "one entry for two tensors": (lambda f: f.graph["tensors"].append(f.graph["tensors"][0]), "in common"),
    "an entry too many": (lambda f: f.tensors.update(more=torch.zeros(3)), "belongs to no tensor"),
    "a value of no module": (lambda f: f.graph["values"].append(f.graph["values"][0]), "no module's"),
    "a parameter without gradients": (
        lambda f: f.graph["values"][0].update(requires_grad=True), "require no gradients|integers"),
    "a stage that there is not": (lambda f: f.graph["state"].update(stage="HALF"), "no Stage"),
    "a huge id": (lambda f: f.graph["state"].update(next_id=2**70), "expected an integer"),
    "a field too many": (lambda f: f.graph.update(code="import os"), "unknown 'code'"),
    "a field too few": (lambda f: f.graph.pop("nodes"), "no 'nodes'"),
    "a class name that is code": (lambda f: f.graph.update({"class": "A(object): import os"}), "name of a class"),
    "a report of something else": (lambda f: f.report["report"].update(notes=5), "expected an array"),
    "a report with a node too many": (
        lambda f: f.report["report"]["passes"][0]["before"]["nodes"].append(10**6), "expected an integer"),
    "another format": (lambda f: f.metadata.update(format="pt"), "not written by fxq"),
    "a later version": (lambda f: f.metadata.update(format_version="2"), "format version '2'"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edits(forged: Forged, tmp_path: Path, name: str) -> None:
    edit, text = EDITS[name]
    edit(forged)
    with pytest.raises(StorageError, match=text) as caught:
        load(forged.write(tmp_path / "m"))
    assert str(tmp_path / "m") in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "", "null", "[]", '{"nodes": NaN}', '{"a": 1, "a": 1}', "9" * 5000, '"\\ud800"',
     '{"a": 1e999}', "{"],
)  # fmt: skip
def test_json_that_is_none(forged: Forged, tmp_path: Path, text: str) -> None:
    with pytest.raises(StorageError):
        load(forged.write_text(tmp_path / "m", text))


def test_a_document_that_unpacks_to_much_more(forged: Forged, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not end where it should"):
        load(forged.write_text(tmp_path / "m", " " * 50_000_000))


def test_names_that_double_at_every_level(forged: Forged, tmp_path: Path) -> None:
    modules = forged.graph["modules"]
    root = modules.pop()
    for _ in range(40):
        last = len(modules) - 1
        modules.append({"type": "torch.nn.Module", "training": False, "children": {"a": last, "b": last}})
    modules.append({**root, "children": {**root["children"], "deep": len(modules) - 1}})
    with pytest.raises(StorageError, match="more than 100000 names"):
        load(forged.write(tmp_path / "m"))


def test_a_child_that_two_layers_claim(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("b", (graph.call_module("a", (x, x, x)), x, x)))
    layers = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.MultiheadAttention(4, 2)})
    save(torch.fx.GraphModule(layers, graph), tmp_path / "m")
    forged = Forged.read(tmp_path / "m")
    first, second = (m for m in forged.graph["modules"] if m["type"] == "torch.nn.MultiheadAttention")
    second["children"] = first["children"]
    with pytest.raises(StorageError, match="one child in common"):
        load(forged.write(tmp_path / "m"))


def test_flags_that_are_neither(forged: Forged, tmp_path: Path) -> None:
    forged.tensors = {k: v for k, v in forged.tensors.items() if not k.startswith("flags")}
    forged.tensors["flags"] = torch.full((600,), 2, dtype=torch.uint8).view(torch.bool)
    description = tensor(forged, "flags")
    for key in ("positions", "values", "count"):
        description.pop(key, None)
    with pytest.raises(StorageError, match="neither 0 nor 1"):
        load(forged.write(tmp_path / "m"))


HEADERS = [
    ("", "no header|not JSON"),
    ("[]", "not JSON"),
    ("{}", "at byte"),
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "no checksum"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "at byte"),
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":5}', "twice"),
    ('{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}', "does not fit"),
    ('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}', "does not fit"),
    ('{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}',
     "overlap"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "hole"),
    ('{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', "expected an integer"),
    ('{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,8]}}', "unknown dtype"),
    ('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,8]}}', "expected an integer"),
    ('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}', "unknown 'x'"),
    ('{"a":5}', "expected an object"),
    ('{"__metadata__":{"a":5}}', "expected a string"),
    ('{"__metadata__":{"blake2b":"' + "@" * 64 + '"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
     "not written by fxq"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "text"), HEADERS)
def test_headers(tmp_path: Path, header: str, text: str) -> None:
    with pytest.raises(StorageError, match=text):
        load(with_header(tmp_path / "m", header, bytes(8)))


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, b"\xff" * 8, b"\xff" * 200, b"\0" * 200, b"PK\3\4" * 50])
def test_files_of_another_kind(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(StorageError, match="no safetensors file"):
        load(tmp_path / "m")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=r"cannot be opened(.|\n)*where"):
            load(path)
    for none in (5, "", None):
        with pytest.raises(InputError, match="is not the path of a file"):
            load(none)  # type: ignore[arg-type]


def test_a_library_can_read_what_was_saved(tmp_path: Path) -> None:
    from safetensors import safe_open

    save(fxq.trace(Small().eval(), images()), tmp_path / "m")
    with safe_open(tmp_path / "m", framework="pt") as file:
        assert {GRAPH, "fc.weight"} < set(file.keys())
        assert file.metadata()["format"] == "fxq"
        assert torch.equal(file.get_tensor("fc.weight"), load(tmp_path / "m").fc.weight)
