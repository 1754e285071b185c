from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fxq
from fxq.errors import InputError
from fxq.tracing import ModelInputs, trace

Same = Callable[..., None]
X = torch.randn(2, 4)


class Flags(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, mode: str = "sum", n: int = 1
    ) -> Tensor:
        if mask is not None:
            x = x * mask
        if mode == "sum":
            x = x.sum(-1)
        for _ in range(n):
            x = x * scale
        return x


def test_defaults_that_are_not_given_are_specialised(same: Same) -> None:
    model = Flags()
    gm = trace(model, X)
    same(model, gm, X)
    same(model, gm, torch.randn(5, 4), None, 2.0, mode="sum", n=1)
    names = {s.name: s.value for s in gm.meta["fxq_trace"].specialised}
    assert names == {"mask": "None", "scale": "2.0", "mode": "'sum'", "n": "1"}


def test_other_values_of_what_became_a_constant_are_refused(tmp_path: Path) -> None:
    model = Flags()
    made = fxq.compile(model.eval(), X, recipe="float")
    fxq.save(made, tmp_path / "flags.fxq")
    for gm in (
        trace(model, X),
        made,
        fxq.load(tmp_path / "flags.fxq"),
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
    ):
        assert torch.equal(gm(X, None, 2, mode="sum"), model(X))
        with pytest.raises(InputError, match=r"the argument `mask` is given, and the graph was made for None"):
            gm(X, mask=torch.ones(2, 4))
        with pytest.raises(InputError, match=r"`scale` is 3\.0, and the graph was made for 2\.0"):
            gm(X, scale=3.0)
        with pytest.raises(InputError, match="`mode` is 'mean', and the graph was made for 'sum'"):
            gm(X, mode="mean")
    gm = trace(model, {"x": X, "scale": 3.0})
    assert torch.equal(gm(X, scale=3.0), model(X, scale=3.0))
    assert torch.equal(gm(X), model(X, scale=3.0))
    assert torch.equal(torch.fx.symbolic_trace(gm)(X), model(X, scale=3.0))
    assert torch.equal(torch.jit.trace(gm, X)(X), model(X, scale=3.0))


def test_flags_in_the_example_are_specialised_to_their_value(same: Same) -> None:
    model = Flags()
    gm = trace(model, ModelInputs((X, torch.ones(2, 4)), {"mode": "none", "n": 3}))
    same(model, gm, torch.randn(5, 4), torch.randn(5, 4), mode="none", n=3)


def test_without_an_example_numbers_stay_arguments_until_control_flow_needs_them(same: Same) -> None:
    gm = trace(Flags())
    assert {s.name for s in gm.meta["fxq_trace"].specialised} == {"mask", "scale", "mode", "n"}
    same(Flags(), gm, X)

    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return x * scale

    scaled = Scaled()
    gm = trace(scaled)
    assert gm.meta["fxq_trace"].specialised == ()
    same(scaled, gm, X)
    same(scaled, gm, X, 3.0)


class DictInput(nn.Module):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        mask = batch.get("mask")
        out = batch["image"] * batch["scale"]
        if mask is not None:
            out = out * mask
        for name, value in batch["extra"].items():
            out = out + value if name != "skip" else out
        return out


def test_a_dict_keeps_its_structure(same: Same) -> None:
    model = DictInput()
    batch = {"image": X, "scale": 2, "extra": {"a": torch.ones(1), "skip": torch.ones(1)}, "unused": X}
    gm = trace(model, batch)
    same(model, gm, batch)
    without = {k: v for k, v in batch.items() if k != "unused"}
    same(model, gm, {**without, "image": torch.randn(7, 4)})
    assert trace(model, {**batch, "mask": X}).code != gm.code


class Variadic(nn.Module):
    def forward(self, *xs: Tensor, weight: float = 1.0, **named: Tensor) -> Tensor:
        out = torch.cat(list(xs)) * weight
        for x in xs:
            out = out + x.mean()
        return out + named["bias"]


def test_variadic_arguments(same: Same) -> None:
    model = Variadic()
    gm = trace(model, ModelInputs((X, X), {"bias": torch.ones(1)}))
    same(model, gm, torch.randn(3, 4), torch.randn(5, 4), bias=torch.ones(4))


class ListInput(nn.Module):
    def forward(self, xs: list[Tensor], y: Tensor) -> Tensor:
        return sum(xs) * len(xs) + y


def test_a_list_argument(same: Same) -> None:
    model = ListInput()
    gm = trace(model, ([X, X, X], X))
    other = torch.randn(6, 4)
    same(model, gm, [other, other, other], other)


class Point(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    loss: Tensor | None = None


@dataclass
class DictResult(OrderedDict):  # the shape of a well-known library's model outputs
    logits: Tensor | None = None
    hidden: Tensor | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            if getattr(self, entry.name) is not None:
                self[entry.name] = getattr(self, entry.name)


class Outputs(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        return {
            "tuple": lambda: (x, [y, 3]),
            "dict": lambda: {"a": x, "b": {"c": y}},
            "named": lambda: Point(x, y),
            "dataclass": lambda: Result(y, (x, y)),
            "dictclass": lambda: DictResult(logits=y),
            "ordered": lambda: OrderedDict(out=y, aux=OrderedDict({"0": x})),
        }[self.kind]()


@pytest.mark.parametrize("kind", ["tuple", "dict", "named"])
def test_structured_outputs(same: Same, kind: str) -> None:
    model = Outputs(kind)
    same(model, trace(model, X), torch.randn(5, 4))


def test_dataclass_outputs_keep_their_type() -> None:
    model = Outputs("dataclass")
    expected, actual = model(X), trace(model, X)(X)
    assert isinstance(actual, Result)
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual.hidden[0], X)
    assert actual.loss is None


def test_dataclasses_that_are_dicts_keep_their_type() -> None:
    model = Outputs("dictclass")
    expected, actual = model(X), trace(model, X)(X)
    assert isinstance(actual, DictResult)
    assert list(actual) == list(expected) == ["logits"]
    assert torch.equal(actual.logits, expected.logits)
    assert torch.equal(actual["logits"], expected["logits"])


def test_ordered_dicts_keep_their_type(tmp_path: Path) -> None:
    model = Outputs("ordered").eval()
    compiled = fxq.compile(model, X, calibration=[X], target="reference")
    fxq.save(compiled, tmp_path / "ordered.fxq")
    for gm in (trace(model, X), compiled, fxq.load(tmp_path / "ordered.fxq")):
        found = gm(X)
        assert type(found) is OrderedDict
        assert type(found["aux"]) is OrderedDict
        assert list(found) == ["out", "aux"]
        assert torch.equal(found["aux"]["0"], X)
    assert torch.equal(trace(model, X)(X)["out"], model(X)["out"])


class Required(nn.Module):
    def forward(self, x: Tensor, a: float = 1.0, *, y: Tensor) -> Tensor:
        return x * a + y


def test_a_required_keyword_after_a_default(same: Same) -> None:
    model = Required()
    same(model, trace(model, {"x": X, "y": X}), X, y=X)


def test_a_dataclass_argument(same: Same) -> None:
    class Takes(nn.Module):
        def forward(self, r: Result) -> Tensor:
            return r.logits + r.hidden[1] if r.loss is None else r.loss

    model = Takes()
    same(model, trace(model, (Result(X, (X, X)),)), Result(X + 1, (X, X * 2)))


class Packed(nn.Module):
    """Reads a packed sequence in all the ways that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.rnn = nn.Linear(6, 6), nn.LSTM(6, 8, batch_first=True)

    def forward(self, x: PackedSequence) -> Tensor:
        assert isinstance(x, PackedSequence)
        data, sizes, order, back = x
        out, (state, _) = self.rnn(PackedSequence(self.before(data), sizes, order, back))
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return padded.sum(1) + state[0] + x._replace(data=x.data * 2).data.mean()


def test_a_packed_sequence_is_one_argument_with_lengths_of_its_own() -> None:
    torch.manual_seed(0)
    model, x = Packed().eval(), torch.randn(3, 7, 6)
    sequences = [pack_padded_sequence(x, lengths, True, enforce_sorted=False) for lengths in ([3, 7, 2], [5, 1, 4])]
    gm = trace(model, (sequences[0],))
    for sequence in sequences:
        torch.testing.assert_close(gm(sequence), model(sequence), rtol=0, atol=0)
