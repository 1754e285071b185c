"""Shapes that are followed without values are those of a run; what does not fit is refused before anything is read."""

from __future__ import annotations

import copy
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxq
from fxq.engine.dissolve import dissolve
from fxq.errors import StorageError
from fxq.ir.shapes import TensorSpec, run_recorded
from fxq.storage import load, save
from fxq.storage.propagate import UNKNOWN, _Follower
from fxq.tracing.record import INPUTS_KEY
from tests.storage.forge import Forged
from tests.storage.models import CASES, images, residual


class Everything(nn.Module):
    """Every operation with a rule, and some that torch's own kernels are asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(4, 8, 3, (1, 2), 2, 2, 2), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1)
        self.norms = nn.Sequential(nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.Dropout(0.1), nn.ReLU6(True))
        self.embed, self.ln, self.rms = nn.Embedding(9, 8), nn.LayerNorm(8), nn.RMSNorm((5, 8))
        self.lstm, self.gru = nn.LSTM(8, 4, 2, bidirectional=True, proj_size=3), nn.GRU(8, 3, batch_first=True)
        self.fc, self.prelu = nn.Linear(8, 6), nn.PReLU(6)

    def forward(self, x: Tensor, ids: Tensor, n: int = 3) -> Any:
        y = self.norms(self.up(self.conv(x)))
        y = F.max_pool2d(y, 3, 2, 1, ceil_mode=True) - self.prelu(F.avg_pool2d(y, 2, ceil_mode=True))[:, :, :1, :1]
        pooled = F.adaptive_avg_pool2d(y, (None, 2)).flatten(1), F.adaptive_max_pool2d(y, 1).mean((2, 3), keepdim=True)
        e = self.rms(self.ln(self.embed(ids)))
        (seq, (h, c)), (g, last) = self.lstm(e), self.gru(e)
        b, length, width = e.shape
        q, k = e.view(b, length, 2, -1).permute(0, 2, 1, 3), e.reshape(b, 1, -1, width // 2)
        attended = F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(length, length) > 0)
        scores = (k @ k.transpose(-2, -1)).softmax(-1).clamp(min=0)
        parts = torch.cat([p * 2.0 for p in seq.chunk(2, -1)], dim=1), torch.stack([h[0], h[1]], -1)
        padded = F.pad(y, (1, 2, 0, -1)), F.pad(y, (1, 1, 1, 0), mode="reflect"), F.interpolate(y, scale_factor=2.0)
        mixed = ids + 1, ids.float() / n, torch.einsum("ij,kj->ik", e[:, 0], e[:, 1]), y.new_zeros(n, b)
        return pooled, (c, g, last), attended, scores, parts, padded, mixed, self.fc(e).tanh_(), y.topk(1, 1), y > 0


def everything() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.trace(Everything().eval(), (torch.randn(2, 4, 9, 8), torch.randint(0, 9, (2, 5)), 3))


def inputs_of_everything() -> tuple[Any, ...]:
    return torch.randn(2, 4, 9, 8), torch.randint(0, 9, (2, 5)), 3


def quantised(recipe: str, target: str = "reference") -> fx.GraphModule:
    data = [images()] if recipe == "int8" else None
    return fxq.compile(residual(), images(), calibration=data, recipe=recipe, target=target)


def trained() -> fx.GraphModule:
    gm = fxq.prepare_qat(residual(), images()).train()
    gm(images())
    return gm.eval()


FOLLOWED = {
    **CASES,
    "everything": (everything, inputs_of_everything),
    "everything, fused": (lambda: fxq.compile(everything(), inputs_of_everything()), inputs_of_everything),
    "bf16": (lambda: quantised("bf16"), lambda: (images(), 1.0)),
    "int8": (lambda: quantised("int8"), lambda: (images(), 1.0)),
    "trained": (trained, lambda: (images(), 1.0)),
    "dynamic": (
        lambda: fxq.compile(nn.Sequential(nn.Linear(64, 32), nn.Tanh()).eval(), torch.ones(2, 64), recipe="dynamic"),
        lambda: (torch.randn(2, 6, 64),),
    ),
}


def specs(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec(tuple(value.shape), value.dtype)
    if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        return tuple(specs(v) for v in value)
    return value if isinstance(value, int | float | torch.Size) else None


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_shapes_are_those_of_a_run(name: str) -> None:
    make, inputs = FOLLOWED[name]
    gm = dissolve(make())
    real: dict[str, Any] = {}
    defaults = [n.args[0] for n in gm.graph.nodes if n.op == "placeholder" and n.args]
    given = inputs()
    given += tuple(defaults[len(given) - 1 :])
    run_recorded(copy.deepcopy(gm), given, watch=lambda node, value: real.update({node.name: specs(value)}))
    names = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]
    meta = copy.deepcopy(gm).to("meta")
    for node in gm.graph.nodes:
        node.meta.pop("fxq_tensor", None)  # nothing is taken from the record
    examples = {n: v.to("meta") if isinstance(v, Tensor) else v for n, v in zip(names, given, strict=True)}
    if isinstance(given[0], dict):
        examples[names[0]] = {k: v.to("meta") for k, v in given[0].items()}
    follower = _Follower(gm.graph, meta, examples, frozenset())
    assert follower.run() == []
    known = 0
    for node in gm.graph.nodes:
        value = follower._values[node]
        if node.op != "output" and value is not UNKNOWN:
            assert specs(value) == real[node.name], node.name
            known += 1
    assert known >= 0.9 * (len(gm.graph.nodes) - 1)


def edited(path: Path, gm: fx.GraphModule, edit: Callable[[Forged], Any]) -> Path:
    save(gm, path)
    forged = Forged.read(path)
    edit(forged)
    return forged.write(path)


def node(forged: Forged, name: str) -> Any:
    return next(n for n in forged.graph["nodes"] if n["name"] == name)


def resize(forged: Forged, name: str, shape: tuple[int, ...], **settings: Any) -> None:
    """Give the tensor ``name`` another shape, and its layer settings to go with it: the file fits together."""
    description = next(t for t in forged.graph["tensors"] if t["name"] == name)
    index = forged.graph["tensors"].index(description)
    value = next(i for i, v in enumerate(forged.graph["values"]) if v["tensor"] == index)
    layer = next(m for m in forged.graph["modules"] if value in m.get("parameters", {}).values())
    layer["settings"] |= settings
    description["shape"] = list(shape)
    forged.tensors[name] = torch.randn(shape)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1)
        return self.fc(y.view(-1, 9, 64).mean(2))


def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxq.trace(Net().eval(), images())


MISFITS: dict[str, tuple[Callable[[Forged], Any], str]] = {
    "a linear layer of another width": (
        lambda f: resize(f, "fc.weight", (2, 8), in_features=8), r"layer `fc`(.|\n)*\[2, 9\] enters(.|\n)*8 inputs"),
    "a convolution of other channels": (
        lambda f: resize(f, "a.weight", (4, 2, 3, 3), in_channels=2), r"layer `a`(.|\n)*3 channels enter"),
    "a convolution that gives other channels": (
        lambda f: (resize(f, "b.weight", (6, 3, 3, 3), out_channels=6), resize(f, "b.bias", (6,))),
        r"node `view`(.|\n)*cannot be seen as"),
    "an input of another size": (
        lambda f: f.graph["examples"]["x"]["tensor"].update(shape=[2, 3, 7, 7]), r"node `view`(.|\n)*cannot be seen"),
    "an input of another dtype": (
        lambda f: f.graph["examples"]["x"]["tensor"].update(dtype="float64"), r"layer `a`(.|\n)*float64 enters"),
    "a view that is impossible": (
        lambda f: node(f, "view").update(args=[{"node": node_index(f, "cat")}, -1, 9, 2**40]), "cannot be seen as"),
    "tensors in a row that do not fit": (
        lambda f: node(f, "cat").update(args=[[{"node": 0}, {"node": 1}], 0]), r"node `cat`(.|\n)*do not fit along 0"),
    "a dimension that there is not": (lambda f: node(f, "mean")["args"].__setitem__(1, 3), "no dimension 3"),
    "an absurd input": (
        lambda f: f.graph["examples"]["x"]["tensor"].update(shape=[2**62, 2**62]), "absurd shape"),
    "an input of fewer dimensions": (
        lambda f: f.graph["examples"]["x"]["tensor"].update(shape=[3]), "is no image of 2 dimensions"),
    "a convolution of no channels": (
        lambda f: (resize(f, "a.weight", (0, 3, 3, 3), out_channels=0), resize(f, "a.bias", (0,)),
                   resize(f, "b.weight", (9, 3, 3, 3), out_channels=9), resize(f, "b.bias", (9,))), "computes nothing"),
    "groups that do not divide": (lambda f: resize(f, "a.weight", (4, 1, 3, 3), groups=2), "divisible by groups"),
}  # fmt: skip


def node_index(forged: Forged, name: str) -> int:
    return [n["name"] for n in forged.graph["nodes"]].index(name)


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, text = MISFITS[name]
    path = edited(tmp_path / "m", net(), edit)
    monkeypatch.setattr(sys.modules["fxq.storage.load"], "_read", lambda *args: pytest.fail("a tensor was read"))
    with pytest.raises(StorageError, match=text) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_int8_layers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    gm = fxq.compile(Net().eval(), images(), calibration=[images()], target="reference")

    def other_channels(forged: Forged) -> None:
        layer = next(m for m in forged.graph["modules"] if m["type"] == "fxq.nn.QConv2d")
        layer["settings"]["geometry"].update(in_channels=6)

    with pytest.raises(StorageError, match="'weight' has the shape"):
        load(edited(tmp_path / "m", gm, other_channels))

    def other_scales(forged: Forged) -> None:
        description = next(t for t in forged.graph["tensors"] if t["name"] == "a.weight_scale")
        description["shape"], forged.tensors["a.weight_scale"] = [3], torch.ones(3)

    with pytest.raises(StorageError, match="'weight_scale' has the shape"):
        load(edited(tmp_path / "m", gm, other_scales))
    with pytest.raises(StorageError, match="4 channels enter a convolution of 3"):
        load(edited(tmp_path / "m", gm, lambda f: f.graph["examples"]["x"]["tensor"].update(shape=[2, 4, 8, 8])))


def test_a_file_without_an_example_loads_unfollowed(tmp_path: Path) -> None:
    def edit(forged: Forged) -> None:
        resize(forged, "fc.weight", (2, 8), in_features=8)
        forged.graph.pop("examples")

    loaded = load(edited(tmp_path / "m", net(), edit))
    with pytest.raises(RuntimeError):
        loaded(images())
    save(fxq.trace(Net().eval()), tmp_path / "n")
    assert INPUTS_KEY not in load(tmp_path / "n").meta


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return torch.nonzero(y), y[y > 0].sum(), torch.unique(x), x.sum().item(), torch.linalg.inv(y[:, :3])


def test_operations_that_look_at_data_load(tmp_path: Path) -> None:
    gm, x = fxq.trace(Looking(), torch.randn(3, 3)), torch.randn(3, 3)
    save(gm, tmp_path / "m")
    loaded = load(tmp_path / "m")
    for a, b in zip(gm(x), loaded(x), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


def test_what_only_runs_elsewhere_is_marked_and_loads(tmp_path: Path) -> None:
    """Half-precision inputs of a float32 model, as it runs under autocast."""
    gm = fxq.trace(Net().eval(), images().bfloat16())
    save(gm, tmp_path / "m")
    marked = [n["name"] for n in Forged.read(tmp_path / "m").graph["nodes"] if "unchecked" in n]
    assert marked == ["a", "b"]
    loaded = load(tmp_path / "m")
    with torch.no_grad(), torch.autocast("cpu"):
        assert torch.equal(loaded(images().bfloat16()), gm(images().bfloat16()))


_PROCESS = """
import sys
import fxq
assert "sympy" not in sys.modules
for path in sys.argv[1:]:
    assert fxq.load(path).meta["fxq_inputs"]
assert "sympy" not in sys.modules, "torch's kernels for the meta device were asked"
"""


def test_common_graphs_are_followed_by_rules_alone(tmp_path: Path) -> None:
    """The first kernel of the meta device in a process imports a second of torch: as long as ten loads take."""
    for name in ("traced", "float", "reference"):
        save(CASES[name][0](), tmp_path / name)
    command = [sys.executable, "-c", _PROCESS, *map(str, tmp_path.iterdir())]
    root = Path(fxq.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr


def graph_of(calls: Callable[[fx.Graph, fx.Node], Any]) -> fx.GraphModule:
    graph = fx.Graph()
    graph.output(calls(graph, graph.placeholder("x")))
    gm = fx.GraphModule(nn.Module(), graph)
    gm.meta[INPUTS_KEY] = {"x": TensorSpec((2, 3), torch.float32)}
    return gm


def _doubling(graph: fx.Graph, x: fx.Node) -> Any:
    for _ in range(60):
        x = graph.call_function(list, ([x, x],))
    return x


def _longer(graph: fx.Graph, x: fx.Node) -> Any:
    shape = graph.call_function(getattr, (x, "shape"))
    for _ in range(60):
        shape = graph.call_function(operator.add, (shape, shape))
    return shape


HUNGRY: dict[str, Callable[[fx.Graph, fx.Node], Any]] = {
    "lists that hold one list twice": _doubling,
    "shapes that grow twice as long": _longer,
    "a list many times as long": lambda g, x: g.call_function(operator.mul, ([x], 2**40)),
    "a power of large numbers": lambda g, x: g.call_function(operator.pow, (10**9, 10**9)),
    "a number with many digits": lambda g, x: g.call_function(operator.lshift, (1, 2**40)),
    "a number rounded far": lambda g, x: g.call_function(round, (5, -(2**62))),
    "a tensor taken apart": lambda g, x: g.call_method(
        "split", (g.call_method("reshape", (g.call_method("new_empty", (x, 2**40)), -1)), 1)),
    "a large tensor": lambda g, x: g.call_function(torch.zeros, (2**40,)),
    "a large tensor on a device": lambda g, x: g.call_function(torch.ones, (2**40,), {"device": torch.device("cpu")}),
    "a large tensor by method": lambda g, x: g.call_method("new_zeros", (x, (2**40,)), {"device": "cpu"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUNGRY)
def test_a_file_decides_neither_how_long_loading_takes_nor_in_how_much_memory(name: str, tmp_path: Path) -> None:
    save(graph_of(HUNGRY[name]), tmp_path / "m")  # saving follows the shapes just as loading does
    load(tmp_path / "m")
