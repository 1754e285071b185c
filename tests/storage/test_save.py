"""What cannot be saved is refused with the place and a remedy; what is written appears whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.errors import InputError
from fxq.storage import load, save


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x)


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


@dataclasses.dataclass
class Output:
    y: Tensor


@dataclasses.dataclass
class Doubling:
    y: Any

    def __post_init__(self) -> None:
        self.y = self.y * 2


@dataclasses.dataclass
class Counting:
    y: Any
    n: int = dataclasses.field(default=1, init=False)


def own_function(x: Tensor) -> Tensor:
    return x


def graph_of(build: Callable[[fx.Graph, fx.Node], Any], root: nn.Module | None = None) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return fx.GraphModule(root or Plain(), graph)


def opaque() -> fx.GraphModule:
    model = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"inner": Opaque()})["inner"])
    return fxq.trace(model, torch.zeros(1, 3))


def hooked() -> fx.GraphModule:
    model = Plain()
    model.fc.register_forward_hook(lambda module, args, output: output + 1)
    return fxq.trace(model)


def replaced() -> fx.GraphModule:
    gm = fxq.trace(Plain())
    gm.fc.forward = lambda x: x  # type: ignore[union-attr,method-assign,assignment]
    return gm


def parametrised() -> fx.GraphModule:
    model = Plain()
    torch.nn.utils.parametrizations.weight_norm(model.fc)
    return fxq.trace(model)


def returning(make: Callable[[Tensor], Any]) -> fx.GraphModule:
    class Returning(Plain):
        def forward(self, x: Tensor) -> Any:
            return make(self.fc(x))

    return fxq.trace(Returning())


def reading_attributes() -> fx.GraphModule:
    class Reading(Plain):
        def forward(self, x: Any) -> Any:
            return self.fc(x.y)

    return fxq.trace(Reading(), (Output(torch.zeros(1, 3)),))


def resized() -> fx.GraphModule:
    gm = fxq.trace(Plain())
    gm.fc.out_features = 5  # type: ignore[union-attr,assignment]
    gm.fc.weight = nn.Parameter(torch.zeros(7, 3))  # type: ignore[union-attr]
    return gm


def pytree() -> fx.GraphModule:
    gm = fxq.trace(Plain())
    gm.graph.set_codegen(fx.graph._PyTreeCodeGen(fx.graph._PyTreeInfo(["x"], None, None)))  # type: ignore[arg-type]
    return gm


def extra_buffer() -> fx.GraphModule:
    gm = fxq.trace(Plain())
    gm.fc.register_buffer("mask", torch.ones(2))  # type: ignore[union-attr,operator]
    return gm


def strange_name() -> fx.GraphModule:
    model = nn.ModuleDict({"a b": nn.ReLU()})
    return graph_of(lambda graph, x: graph.call_module("a b", (x,)), model)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no graph module": (Plain, r"takes a graph module, not a Plain"),
    "a module of the user's": (opaque, r"type (.*)Opaque(.|\n)*where: module `1`(.|\n)*fix: compile the model"),
    "hooks": (hooked, r"hooks(.|\n)*where: module `fc`(.|\n)*fix: remove them"),
    "another forward": (replaced, r"forward was replaced(.|\n)*module `fc`"),
    "parametrisations": (parametrised, r"parametrisations(.|\n)*module `fc`(.|\n)*remove_parametrizations"),
    "a class as output that does more than hold fields": (
        lambda: returning(Doubling), r"class (.*)Doubling(.|\n)*node `(.*)`(.|\n)*__post_init__(.|\n)*plain dataclass"),
    "a class as output that makes a field itself": (
        lambda: returning(Counting), r"class (.*)Counting(.|\n)*constructor does not take its fields"),
    "a function of the user's": (
        lambda: graph_of(lambda g, x: g.call_function(own_function, (x,))), r"own_function(.|\n)*node `own_function`"),
    "a method that is no operation": (
        lambda: graph_of(lambda g, x: g.call_method("tolist", (x,))), r"method `tolist`(.|\n)*node `tolist`"),
    "an attribute": (reading_attributes, r"attribute is read(.|\n)*node `(.*)`(.|\n)*dicts or tuples"),
    "an argument of another kind": (
        lambda: graph_of(lambda g, x: g.call_function(torch.add, (x, range(3)))), r"a range cannot(.|\n)*node `add`"),
    "a huge number": (lambda: graph_of(lambda g, x: g.call_function(torch.add, (x, 2**70))), r"int cannot be saved"),
    "a layer that is not as it says": (resized, r"cannot be saved: 'weight' has the shape \(7, 3\)"),
    "inputs as a pytree": (pytree, r"_PyTreeCodeGen(.|\n)*fxq.trace"),
    "a buffer that the layer has not": (extra_buffer, r"cannot be saved(.|\n)*'mask'"),
    "a name with a space": (strange_name, r"cannot be saved(.|\n)*'a b'"),
    "no values": (lambda: fxq.trace(Plain().to("meta")), r"meta device(.|\n)*where: fc.weight"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_saved_is_named(name: str, tmp_path: Path) -> None:
    make, text = REFUSED[name]
    gm = make()
    with pytest.raises(InputError, match=text):
        save(gm, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["save_file", "write"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    save(fxq.trace(Plain()), path)
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    if fails == "save_file":
        monkeypatch.setattr("fxq.storage.container.save_file", full)
    else:
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot be written(.|\n)*No space left"):
        save(fxq.trace(Plain()), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["fxq.storage.save"], "encode_graph", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(fxq.trace(Plain()), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["fxq.storage.save"], "_describe", lambda *args: pytest.fail("work has begun"))
    gm = fxq.trace(Plain())
    with pytest.raises(InputError, match=r"cannot be written(.|\n)*No such file or directory(.|\n)*fix:"):
        save(gm, tmp_path / "nowhere" / "m")
    with pytest.raises(InputError, match="a folder of this name"):
        save(gm, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save(gm, tmp_path / "file" / "m")


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"not a file(.|\n)*fix: give the path of a file"):
        save(fxq.trace(Plain()), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    for call in (lambda path: save(fxq.trace(Plain()), path), load):
        with pytest.raises(InputError, match=r"cannot be (written|opened)|not the path of a file"):
            call(tmp_path / name)


def test_a_place_that_becomes_a_folder_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = sys.modules["fxq.storage.save"].write_stored

    def late(*args: Any) -> None:
        write(*args)
        (tmp_path / "m").mkdir()

    monkeypatch.setattr(sys.modules["fxq.storage.save"], "write_stored", late)
    with pytest.raises(InputError, match=r"cannot be written(.|\n)*directory"):
        save(fxq.trace(Plain()), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Permission denied"):
            save(fxq.trace(Plain()), tmp_path / "m")
    finally:
        tmp_path.chmod(0o700)


def test_links_and_permissions_of_an_old_file_stay(tmp_path: Path) -> None:
    gm = fxq.trace(Plain())
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    save(gm, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640
    save(gm, tmp_path / "new")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    assert torch.equal(load(tmp_path / "link").fc.weight, gm.fc.weight)


def test_a_graph_module_that_fxq_has_not_seen_can_be_saved(tmp_path: Path) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> Any:
        y = graph.call_module("fc", (x,))
        z = graph.call_function(F.pad, (y, [1, 1]), {"value": float("-inf")})
        w = graph.call_function(torch.full_like, (z, float("nan")), {"dtype": torch.float64})
        part = graph.call_method("__getitem__", (z, (..., slice(None, -1, 2), None)))
        return {"z": [z, (part, 1, 1.5, None, True)], 3: w, "s": graph.call_function(getattr, (x, "shape"))}

    gm = graph_of(build)
    save(gm, tmp_path / "m")
    loaded, x = load(tmp_path / "m"), torch.randn(2, 3)
    expected, actual = gm(x), loaded(x)
    assert torch.equal(expected["z"][0], actual["z"][0])
    assert torch.equal(expected["z"][1][0], actual["z"][1][0])
    assert actual["z"][1][1:] == (1, 1.5, None, True)
    assert actual[3].isnan().all()
    assert actual[3].dtype is torch.float64
    assert actual["s"] == x.shape
    assert loaded.code == gm.code


def test_arguments_of_every_kind_of_signature(tmp_path: Path) -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor, *rest: Tensor, scale: float = 2.0, **more: Tensor) -> Tensor:
            return (x + rest[0]) * scale + more["last"]

    x = torch.randn(2)
    gm = fxq.trace(Many(), fxq.tracing.ModelInputs((x, x + 1), {"scale": 3.0, "last": x - 1}))
    save(gm, tmp_path / "m")
    expected = gm(x, x + 1, scale=3.0, last=x - 1)
    assert torch.equal(load(tmp_path / "m")(x, x + 1, scale=3.0, last=x - 1), expected)
