"""DOT source: goldens, names, modules, folding."""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from fxq.errors import InputError
from fxq.ir import GraphSnapshot, NodeRecord, Stage, diff
from fxq.visualize import to_dot

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = ["</script>", '"quoted"', "{x|y}", "a:b", "back\\slash", "\\N \\G \\l \\", "<b>bold</b>", "&lt;&amp;&#65;",
           "größe 漢字 🙂", "it's", "%s $x `y`", "// no comment", "-->", "node", "<>", "#"]  # fmt: skip


def svg_texts(source: str, program: str) -> list[str]:
    """Return all text of the picture."""
    out = subprocess.run([program, "-Tsvg"], input=source.encode(), capture_output=True, check=True, timeout=60)
    assert out.stderr == b""
    root = ET.fromstring(out.stdout)
    return ["".join(e.itertext()) for e in root.iter() if e.tag.endswith("}text")]


def svg_tooltips(source: str, program: str) -> list[str]:
    out = subprocess.run([program, "-Tsvg"], input=source.encode(), capture_output=True, check=True, timeout=60)
    key = "{http://www.w3.org/1999/xlink}title"
    return [e.attrib[key].replace("\u2060", "") for e in ET.fromstring(out.stdout).iter() if key in e.attrib]


@pytest.mark.parametrize("name", ["plain", "before", "after"])
def test_golden(name: str, before: GraphSnapshot, after: GraphSnapshot) -> None:
    """Byte for byte; FXQ_GOLDEN=write rewrites the files."""
    changes = diff(before, after)
    source = {
        "plain": lambda: to_dot(before, title="block"),
        "before": lambda: to_dot(before, changes=changes, side="before", title="03 fold_batch_norm"),
        "after": lambda: to_dot(after, changes=changes, side="after", title="03 fold_batch_norm"),
    }[name]()
    path = GOLDEN / f"{name}.dot"
    if os.environ.get("FXQ_GOLDEN") == "write":
        path.write_text(source, encoding="utf-8")
    assert source == path.read_text(encoding="utf-8")


def test_every_text_arrives_as_it_is(node: Callable[..., NodeRecord], dot: str) -> None:
    nodes = [node(i, text, f"kind {text}", module_path=f"m {text}") for i, text in enumerate(HOSTILE)]
    snapshot = GraphSnapshot(Stage.FLOAT, tuple(nodes))
    source = to_dot(snapshot, title=HOSTILE[0])
    texts = svg_texts(source, dot)
    for text in HOSTILE:
        assert text in texts
        assert f"kind {text}" in texts
    tooltips = svg_tooltips(source, dot)
    for text in HOSTILE:
        assert any(f"module m {text}" in t.split("\n") for t in tooltips), text


def test_hostile_module_names(node: Callable[..., NodeRecord], dot: str) -> None:
    nodes = []
    for i, text in enumerate(HOSTILE):
        path = f"m{text}"
        nodes += [node(2 * i, f"a{i}", module_path=path), node(2 * i + 1, f"b{i}", inputs=(2 * i,), module_path=path)]
    texts = svg_texts(to_dot(GraphSnapshot(Stage.FLOAT, tuple(nodes))), dot)
    assert {f"m{text}" for text in HOSTILE} <= set(texts)


def test_characters_that_xml_cannot_hold(node: Callable[..., NodeRecord], dot: str) -> None:
    snapshot = GraphSnapshot(Stage.FLOAT, (node(0, "a\x00b\x1b\ud800c", source="x\x07.py:1"),))
    assert "a\ufffdb\ufffd\ufffdc" in svg_texts(to_dot(snapshot), dot)


def test_constants_and_sizes_have_no_box(before: GraphSnapshot) -> None:
    source = to_dot(before)
    assert "n8 [" not in source
    assert "n8 ->" not in source
    assert "n6 ->" not in source
    assert "with table f32[1, 256]" in source
    assert "shape (layer1_1_relu.size(0), -1)" in source


def test_a_constant_that_nothing_reads_is_drawn(node: Callable[..., NodeRecord]) -> None:
    table = node(0, "table", "get_attr", op="get_attr", target="table")
    assert "n0 [" in to_dot(GraphSnapshot(Stage.FLOAT, (table,)))


def test_a_node_that_reads_sizes_only_hangs_on_their_tensor(node: Callable[..., NodeRecord]) -> None:
    x = node(0, "x", "placeholder", op="placeholder")
    shape = node(1, "getattr_1", "getattr", (0,), args="%x, 'shape'", value="")
    length = node(2, "getitem", "getitem", (1,), args="%getattr_1, 1", value="")
    double = node(3, "mul", "mul", (2,), args="%getitem, 2", value="")
    arange = node(4, "arange", "arange", (3,), args="%mul")
    source = to_dot(GraphSnapshot(Stage.FLOAT, (x, shape, length, double, arange)))
    assert "(x.shape[1] * 2)" in source
    assert "n0 -> n4 [style=dotted" in source
    assert source.count("->") == 1


def test_a_shared_zero_point_makes_no_hub(node: Callable[..., NodeRecord]) -> None:
    zero = node(0, "zero_point", "get_attr", op="get_attr", target="zero_point", value="s32[]")
    x = node(1, "x", "placeholder", op="placeholder")
    users = [node(i, f"q{i}", "quantize", (i - 1, 0), args=f"%q{i - 1}, 0.5, %zero_point") for i in range(2, 60)]
    source = to_dot(GraphSnapshot(Stage.QDQ, (zero, x, *users)))
    assert "n0 " not in source
    assert source.count("n1 -> ") == 1


def test_modules_nest(before: GraphSnapshot) -> None:
    lines = [line.strip() for line in to_dot(before).splitlines()]
    outer = lines.index("subgraph cluster_0 {")
    inner = [i for i, line in enumerate(lines) if line.startswith("subgraph cluster_") and i > outer]
    assert "label=<layer1>" in lines[outer + 1]
    assert ["label=<layer1.0>" in lines[inner[0] + 1], "label=<layer1.1>" in lines[inner[1] + 1]] == [True, True]
    assert "}" not in lines[outer : inner[0]]


def test_a_module_that_groups_nothing_gets_no_box(node: Callable[..., NodeRecord]) -> None:
    """An activation module that became functions, and a chain of modules that hold one another."""
    x = node(0, "x", "placeholder", op="placeholder")
    relus = [node(1, "relu", inputs=(0,), module_path="relu"), node(2, "gelu", "gelu", (1,)),
             node(3, "relu_1", inputs=(2,), module_path="relu")]  # fmt: skip
    deep = [node(4, "a", inputs=(3,), module_path="m.n.o"), node(5, "b", inputs=(4,), module_path="m.n.o")]
    source = to_dot(GraphSnapshot(Stage.FLOAT, (x, *relus, *deep)))
    assert source.count("subgraph") == 1
    assert "label=<m.n.o>" in source


def test_quantise_nodes_make_no_module_of_a_function(node: Callable[..., NodeRecord]) -> None:
    pool = node(0, "pool", "max_pool2d", module_path="pool")
    quantise = node(1, "pool_q", "quantize", (0,), args="%pool, 0.25, 3", module_path="pool")
    assert "subgraph" not in to_dot(GraphSnapshot(Stage.QDQ, (pool, quantise)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "quantize", "args": "%x, 0.018657123, 114"}, ["scale 0.01866, zero point 114"]),
        (
            {"op": "call_module", "kind": "Quantize", "details": "output=(0.0321382, 127)"},
            ["output: scale 0.03214, zero point 127", "peripheries=2"],
        ),
        ({"kind": "dequantize", "args": "%x, scale=0.5, zero_point=0"}, ["scale 0.5, zero point 0"]),
        (
            {"op": "call_module", "kind": "QConv2d", "value": "u8[1, 4]",
             "details": "3, 64, kernel_size=(7, 5), stride=(2, 2), input=(0.018657, 114), output=(0.0324, 0)"},
            ["3 → 64 · kernel 7×5 · stride 2×2", "input: scale 0.01866, zero point 114", "output: scale 0.0324"],
        ),
        ({"op": "call_module", "kind": "linear", "details": "in_features=3, out_features=5, bias=True"}, ["3 → 5"]),
        ({"kind": "getitem", "args": "%x, (slice(None, 2, None), 0)"}, ["(:2, 0)"]),
        ({"kind": "mean", "args": "%x, dim=(2, 3), keepdim=True"}, ["dim (2, 3) · keepdim True"]),
    ],
)  # fmt: skip
def test_settings(fields: dict[str, str], words: list[str], node: Callable[..., NodeRecord]) -> None:
    x = node(0, "x", "placeholder", op="placeholder")
    source = to_dot(GraphSnapshot(Stage.INT8, (x, node(1, "n", inputs=(0,), **fields))))
    for word in words:
        assert word in source


def test_families_differ_in_looks(node: Callable[..., NodeRecord]) -> None:
    def look(**fields: object) -> str:
        line = next(t for t in to_dot(GraphSnapshot(Stage.INT8, (node(0, "n", **fields),))).splitlines() if "n0 [" in t)
        return line[line.index(" color=") :].partition("tooltip")[0]

    float_layer = look(kind="conv2d", op="call_module", digest=1)
    int8_layer = look(kind="QConv2d", op="call_module", digest=1)
    simulated = look(kind="QDQConv2d", op="call_module", digest=1)
    quantise, dequantise = look(kind="quantize"), look(kind="dequantize")
    assert len({look(), float_layer, int8_layer, simulated, quantise, dequantise}) == 6
    assert "peripheries=2" in quantise


def test_provenance_in_the_tooltip(after: GraphSnapshot, before: GraphSnapshot) -> None:
    source = to_dot(after, names={n.id: n.name for n in before.nodes})
    assert "source net.py:11" in source
    assert "made by fold_batch_norm: fold_conv from layer1_0_conv, layer1_0_bn" in source
    assert "made by fold_batch_norm: as_scale from mul" in source


def test_an_unknown_side() -> None:
    with pytest.raises(InputError, match="no side 'left'"):
        to_dot(GraphSnapshot(Stage.FLOAT, ()), side="left")  # type: ignore[arg-type]


def test_an_empty_graph(dot: str) -> None:
    assert svg_texts(to_dot(GraphSnapshot(Stage.FLOAT, ()), title="empty"), dot)[0] == "empty"
