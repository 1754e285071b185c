"""Small graphs, as snapshots and as records of passes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fxq.ir import GraphSnapshot, NodeRecord, Stage
from fxq.ir.provenance import Origin
from fxq.manager import PassRecord

Node = Callable[..., NodeRecord]


@pytest.fixture
def node() -> Node:
    """A factory of node records: ``node(3, "relu", inputs=[2])``."""
    return make_node


def make_node(id: int, name: str, kind: str = "relu", inputs: tuple[int, ...] = (), **fields: object) -> NodeRecord:
    blank = NodeRecord(id, name, "call_function", kind, kind, tuple(inputs), "", "", 0, "f32[1, 4]", "", None, ())
    return replace(blank, **fields)  # type: ignore[arg-type]


def layer(id: int, path: str, kind: str, inputs: tuple[int, ...], args: str, **fields: object) -> NodeRecord:
    """A call of a module with weights."""
    fields = {"op": "call_module", "target": path, "module_path": path, "args": args, "digest": id + 1} | fields
    return make_node(id, path.replace(".", "_"), kind, inputs, **fields)


@pytest.fixture
def before() -> GraphSnapshot:
    """A residual block with a batch norm behind its convolution, a constant, and a size."""
    conv = "4, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False"
    return GraphSnapshot(Stage.CANONICAL, (
        make_node(0, "x", "placeholder", op="placeholder", value="f32[1, 4, 8, 8]", source="net.py:10"),
        layer(1, "layer1.0.conv", "conv2d", (0,), "%x", details=conv, value="f32[1, 4, 8, 8]", source="net.py:11"),
        layer(2, "layer1.0.bn", "batch_norm", (1,), "%layer1_0_conv", details="4", value="f32[1, 4, 8, 8]"),
        make_node(3, "add", "add", (2, 0), args="%layer1_0_bn, %x, alpha=1", module_path="layer1.0"),
        layer(4, "layer1.1.conv", "conv2d", (3,), "%add", details=conv),
        make_node(5, "layer1_1_relu", "relu", (4,), args="%layer1_1_conv", module_path="layer1.1"),
        make_node(6, "size", "size", (5,), op="call_method", args="%layer1_1_relu, 0", value="int"),
        make_node(7, "view", "reshape", (5, 6), args="%layer1_1_relu, shape=(%size, -1)"),
        make_node(8, "table", "get_attr", op="get_attr", target="table", value="f32[1, 256]", digest=9),
        make_node(9, "mul", "mul", (7, 8), args="%view, %table"),
        make_node(10, "output", "output", (9,), op="output", args="%mul"),
    ))  # fmt: skip


@pytest.fixture
def after(before: GraphSnapshot) -> GraphSnapshot:
    """The same with the batch norm folded, the multiplication replaced, and the rules that did it on record."""
    nodes = {n.id: n for n in before.nodes}
    fold = Origin("fold_batch_norm", "fold_conv", (1, 2))
    conv = replace(nodes[1], details=nodes[1].details.removesuffix(", bias=False"), digest=77, origins=(fold,))
    add = replace(nodes[3], inputs=(1, 0), args="%layer1_0_conv, %x, alpha=1")
    scale = make_node(11, "scale", "scale", (7,), args="%view", origins=(Origin("fold_batch_norm", "as_scale", (9,)),))
    output = replace(nodes[10], inputs=(11,), args="%scale")
    kept = [nodes[i] for i in (4, 5, 6, 7)]
    return GraphSnapshot(Stage.CANONICAL, (nodes[0], conv, add, *kept, scale, output))


@pytest.fixture
def record(before: GraphSnapshot, after: GraphSnapshot) -> PassRecord:
    """The record of the pass between the two."""
    return PassRecord("fold_batch_norm", "FoldBatchNorm()", "CLOSE", before, after)


@pytest.fixture
def dot() -> str:
    """The path of the ``dot`` program."""
    program = shutil.which("dot")
    if program is None:
        pytest.skip("the program dot is not installed")
    return program


@pytest.fixture
def no_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without ``dot``."""
    monkeypatch.setenv("PATH", "")


@pytest.fixture
def fake_dot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a shell script in the place of ``dot`` and returns a file to which it may write."""

    def put(script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        log = folder / "log"
        program = folder / "dot"
        program.write_text(f'#!/bin/sh\nlog="{log}"\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return log

    return put


@pytest.fixture
def dense_net() -> Callable[[int, int], GraphSnapshot]:
    """A factory of the graphs that layout finds hardest: every layer of a block reads all layers before it."""
    return make_dense_net


def make_dense_net(blocks: int, layers: int) -> GraphSnapshot:
    nodes = [make_node(0, "x", "placeholder", op="placeholder")]
    for b in range(blocks):
        features = [len(nodes) - 1]
        for i in range(layers):
            path = f"features.block{b}.layer{i}"
            names = ", ".join(f"%{nodes[f].name}" for f in features)
            cat = make_node(
                len(nodes), f"cat_{b}_{i}", "cat", tuple(features), args=f"[{names}], dim=1", module_path=path
            )
            nodes.append(cat)
            for kind in ("norm1", "relu1", "conv1", "norm2", "relu2", "conv2"):
                last = nodes[-1]
                nodes.append(layer(last.id + 1, f"{path}.{kind}", kind[:-1], (last.id,), f"%{last.name}"))
            features.append(len(nodes) - 1)
    last = nodes[-1]
    nodes.append(make_node(last.id + 1, "output", "output", (last.id,), op="output", args=f"%{last.name}"))
    return GraphSnapshot(Stage.FLOAT, tuple(nodes))
