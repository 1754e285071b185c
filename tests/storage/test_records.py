from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from fxq.errors import StorageError
from fxq.ir.provenance import NodeInfo, Origin
from fxq.ir.stage import Stage
from fxq.nn.epilogue import Epilogue
from fxq.nn.kernels import Quantisation
from fxq.quant.qparams import QParams
from fxq.storage.records import RecordReader, RecordWriter


@dataclasses.dataclass(frozen=True)
class Leaf:
    name: str
    weight: float = 1.0


@dataclasses.dataclass
class Tree:
    leaves: list[Leaf]
    pair: tuple[int, str]
    stage: Stage = Stage.QDQ
    options: dict[str, bool] = dataclasses.field(default_factory=dict)
    best: Leaf | None = None
    either: float | str | tuple[int, ...] | None = None


TREES = [
    Tree([], (1, "a")),
    Tree(
        [Leaf("x", math.inf), Leaf("y", -0.0), Leaf("x", math.inf)], (-1, ""), Stage.INT8, {"a": True}, Leaf("z"), "s"
    ),
    Tree([Leaf("ünï")], (0, "b"), best=None, either=2.5),
    Tree([], (0, "b"), either=(1, 2)),
]


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("tree", TREES)
def test_records_come_back(tree: Tree) -> None:
    assert RecordReader().decode(Tree, through_json(RecordWriter().encode(tree))) == tree


def test_records_that_repeat_are_stored_once() -> None:
    writer = RecordWriter(Leaf)
    encoded = through_json(writer.encode(TREES[1]))
    assert encoded["leaves"] == [0, 1, 0]
    assert len(writer.table) == 3
    reader = RecordReader(Leaf, through_json(writer.table))
    found = reader.decode(Tree, encoded)
    assert found == TREES[1]
    assert found.leaves[0] is found.leaves[2]
    with pytest.raises(StorageError, match="expected an integer from 0 to 2"):
        reader.decode(Tree, {**encoded, "leaves": [3]})


def test_missing_fields_get_their_defaults() -> None:
    assert RecordReader().decode(Tree, {"leaves": [], "pair": [1, "a"]}) == TREES[0]
    with pytest.raises(StorageError, match=r"a Tree cannot be made(.|\n)*pair"):
        RecordReader().decode(Tree, {"leaves": []})


@pytest.mark.parametrize(
    "change",
    [{"leaves": {}}, {"leaves": [1]}, {"leaves": [{"name": 1}]}, {"pair": [1]}, {"pair": ["a", 1]},
     {"pair": [True, "a"]}, {"stage": 4}, {"stage": "qdq"}, {"options": []}, {"options": {"a": 1}}, {"best": []},
     {"either": [1.5]}, {"either": {"float": "1"}}, {"either": True}, {"other": 1}, {"__class__": 1}],
    ids=repr,
)  # fmt: skip
def test_other_json_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StorageError):
        RecordReader().decode(Tree, {"leaves": [], "pair": [1, "a"], **change})


@pytest.mark.parametrize(
    "value",
    [
        NodeInfo(3, "a.b", "x.py:3", (Origin("p", "r", (1, 2)), Origin("q", "r", ()))),
        Quantisation(QParams(0.1, 3), None, QParams(2.0, 255), Epilogue("hardtanh", (-1.0, math.inf), add=True)),
        Quantisation(QParams(0.1, 3), None, dtype=torch.bfloat16),
        Epilogue("gelu", ("tanh",)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_records_of_fxq_come_back(value: Any) -> None:
    assert RecordReader().decode(type(value), through_json(RecordWriter().encode(value))) == value
