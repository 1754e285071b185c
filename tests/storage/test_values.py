from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import fx

from fxq.errors import InputError, StorageError
from fxq.storage.values import decode_value, encode_value

VALUES = [
    None, True, False, 0, -5, 2**63 - 1, 1.5, -0.0, 1e-320, 0.1, math.inf, -math.inf, "text", "snow ☃", "", 2 + 1j, ...,
    torch.float32, torch.bool, torch.channels_last, torch.preserve_format, torch.strided, torch.device("cpu"),
    torch.device("cuda:1"), int, float, bool, (), [], {}, (1, (2, [3, {"a": (4,)}])), {1: None, None: 2, "x": 1.0},
    slice(1, None, -2), torch.Size([2, 3]), torch.Size([]), [math.inf, (None,)], (slice(None), ..., 3, None),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    found = decode_value(json.loads(json.dumps(encode_value(value, "here"), allow_nan=False)), "here")
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode_value(encode_value(math.nan, "here"), "here"))


def test_nodes_are_indices() -> None:
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    encoded = encode_value([x, {"a": (y,)}, slice(None, x)], "here", [x, y].index)
    assert encoded == [{"node": 0}, {"dict": [["a", {"tuple": [{"node": 1}]}]]}, {"slice": [None, {"node": 0}, None]}]
    found = decode_value(encoded, "here", [x, y])
    assert found[0] is x
    assert found[1]["a"][0] is y
    with pytest.raises(StorageError, match="the argument 1 is no earlier node"):
        decode_value(encoded, "here", [x])


@pytest.mark.parametrize(
    "value",
    [2**63, object(), {1, 2}, range(3), b"x", torch.relu, complex("inf"), torch.zeros(1)],
    ids=["integer", "object", "set", "range", "bytes", "function", "complex", "tensor"],
)
def test_other_values_are_refused_with_their_place(value: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be saved(.|\n)*node `n`(.|\n)*fix: use plain values"):
        encode_value((1, [value]), "node `n`")


def test_deep_values_are_refused() -> None:
    value: Any = 1
    for _ in range(100):
        value = [value]
    for function, error in ((encode_value, InputError), (decode_value, StorageError)):
        with pytest.raises(error, match="nested more than"):
            function(value, "here")


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"tuple": 1}, {"tuple": [1], "x": 2}, {"dtype": "relu"}, {"dtype": ["float32"]},
     {"device": "cpu; x"}, {"device": "banana"}, {"slice": [1, 2]}, {"slice": ["a", None, None]},
     {"size": [1.0]}, {"dict": [[1]]},
     {"dict": [[[1], 2]]}, {"dict": [[1, 2], [1, 3]]}, {"float": "1e5"}, {"float": 1.0}, {"node": 0}, {"node": -1},
     {"node": True}, {"node": {"node": 0}}, {"complex": [1]}, {"type": "object"}, 2**63, "\ud800"],
    ids=repr,
)  # fmt: skip
def test_other_json_is_refused(value: Any) -> None:
    with pytest.raises(StorageError):
        decode_value(value, "here")
