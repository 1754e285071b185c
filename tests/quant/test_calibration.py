"""Calibration data in every form that people have it in."""

from __future__ import annotations

from collections import UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxq.errors import CalibrationError, InputError
from fxq.quant.calibration import Calibration, inputs
from fxq.tracing import normalise_inputs

X = torch.arange(12.0).reshape(4, 3)


class Recording(nn.Module):
    """Keeps what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.calls.append((x.clone() if isinstance(x, Tensor) else x, mask))
        return x


class Two(Recording):
    def forward(self, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        self.calls.append((a, b))
        return a + b * scale


def seen(data: Any, model: Recording | None = None, example: Any = None) -> list[Tensor]:
    """Run the data, the first batch looked at before, and return the first argument of each call."""
    model = model or Recording()
    bound = normalise_inputs(model, example)
    calibration = Calibration(data, model, bound)
    calibration.first()
    assert calibration.run(model) == len(model.calls)
    return [call[0] for call in model.calls]


def generated() -> Iterator[Tensor]:
    yield from X.split(2)


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


class Progress:
    """A wrapper around an iterator, as progress bars are: it can be iterated again, and gives nothing then."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        yield from self.iterator


Pair = namedtuple("Pair", "image label")

FORMS = {
    "list of tensors": lambda: list(X.split(2)),
    "tuple of tensors": lambda: X.split(2),
    "loader with labels": lambda: DataLoader(TensorDataset(X, torch.arange(4)), batch_size=2),
    "loader of one tensor": lambda: DataLoader(TensorDataset(X), batch_size=2),
    "iterable dataset": lambda: DataLoader(Stream(), batch_size=2),
    "tuples": lambda: [(x, 7) for x in X.split(2)],
    "lists": lambda: [[x, torch.zeros(2)] for x in X.split(2)],
    "named tuples": lambda: [Pair(x, 1) for x in X.split(2)],
    "dicts": lambda: [{"x": x} for x in X.split(2)],
    "dicts with labels": lambda: [{"x": x, "labels": 3} for x in X.split(2)],
    "mappings": lambda: [UserDict(x=x, labels=3) for x in X.split(2)],
    "generator": generated,
    "generator behind a wrapper": lambda: Progress(generated()),
    "iter": lambda: iter(X.split(2)),
    "mapped list": lambda: inputs([{"image": x, "id": 3} for x in X.split(2)], lambda b: b["image"]),
    "mapped generator": lambda: inputs(((x, 3) for x in X.split(2)), lambda b: b[0]),
    "mapped iterable dataset": lambda: inputs(DataLoader(Stream(), batch_size=2), lambda b: b),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_every_batch_once(form: str) -> None:
    batches = seen(FORMS[form]())
    assert len(batches) == 2
    assert torch.equal(torch.cat(batches), X)


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_dropped_where_there_is_an_example(form: str) -> None:
    example = {"x": X} if "dict" in form or "mapp" in form else X
    assert torch.equal(torch.cat(seen(FORMS[form](), example=example)), X)


def test_a_label_does_not_become_an_optional_argument() -> None:
    model = Recording()
    seen([(X, torch.ones(4))], model)
    assert model.calls[0][1] is None


def test_the_example_says_how_many_arguments_there_are() -> None:
    model = Recording()
    seen([(X, torch.ones(4), 5)], model, example=(X, torch.zeros(4)))
    assert torch.equal(model.calls[0][1], torch.ones(4))


def test_as_many_arguments_as_the_signature_requires() -> None:
    model = Two()
    seen([(X, X + 1, torch.ones(4))], model)
    assert torch.equal(model.calls[0][1], X + 1)


def test_a_model_of_any_number_of_arguments_gets_them_all() -> None:
    class Sum(nn.Module):
        def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
            return torch.stack([*parts, *named.values()]).sum(0)

    (first,) = Calibration([(X, X, X)], Sum())
    assert len(first.args) == 3
    (first,) = Calibration([{"a": X, "b": X}], Sum())
    assert set(first.kwargs) == {"a", "b"}


def test_a_dict_may_be_the_argument_itself() -> None:
    class Take(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["image"]

    (first,) = Calibration([{"image": X, "label": X}], Take())
    assert set(first.args[0]) == {"image", "label"}


def test_a_list_can_be_read_again_and_a_generator_cannot() -> None:
    calibration = Calibration(list(X.split(2)), Recording())
    assert [calibration.run(Recording()) for _ in range(2)] == [2, 2]
    once = Calibration(generated(), Recording())
    assert once.run(Recording()) == 2
    with pytest.raises(CalibrationError, match=r"(?s)empty.*already read"):
        once.run(Recording())


def test_first_twice_is_the_same_batch() -> None:
    calibration = Calibration(list(X.split(2)), Recording())
    one, two = calibration.first(), calibration.first()
    assert one is not None
    assert two is not None
    assert calibration.run(Recording()) == 2


def test_a_callable_runs_the_model() -> None:
    model = Recording()
    calibration = Calibration(lambda m: [m(x) for x in X.split(2)], model)
    assert calibration.first() is None
    assert calibration.run(model) == 2
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("good", [0, 2])
def test_data_that_cannot_be_read_is_named_with_its_error(good: int) -> None:
    def broken() -> Iterator[Tensor]:
        yield from [X] * good
        raise OSError("the disk is gone")

    data = Calibration(inputs(broken(), lambda batch: batch), Recording())
    with pytest.raises(
        CalibrationError, match=rf"OSError: the disk is gone(.|\n)*calibration batch {good}\n"
    ) as caught:
        data.run(Recording())
    assert isinstance(caught.value.__cause__, OSError)


def test_a_callable_that_never_runs_the_model() -> None:
    with pytest.raises(CalibrationError, match="never ran the model"):
        Calibration(lambda m: None, Recording()).run(Recording())


def test_a_callable_that_fails_is_named_with_its_error() -> None:
    def run(model: nn.Module) -> None:
        model(X)
        raise KeyError("image")

    with pytest.raises(CalibrationError, match=r"callable failed: KeyError: 'image'\n.*after 1 calls of the model"):
        Calibration(run, Recording()).run(Recording())


def test_the_callers_batches_stay_as_they_are() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(0)

    batch = X.clone()
    Calibration([batch, (batch, 1), {"x": batch}], Writes()).run(Writes())
    assert torch.equal(batch, X)


@pytest.mark.parametrize("data", [X, {"x": X}, UserDict(x=X)])
def test_one_batch_is_not_a_loader(data: Any) -> None:
    with pytest.raises(InputError, match=r"(?s)iterable of batches, not one batch.*calibration=\[batch\]"):
        Calibration(data, Recording())


def test_neither_data_nor_callable() -> None:
    with pytest.raises(InputError, match=r"calibration is a int\n.*DataLoader"):
        Calibration(3, Recording())


@pytest.mark.parametrize("data", [[], iter(()), DataLoader(TensorDataset(X[:0]))])
def test_no_batch_at_all(data: Any) -> None:
    with pytest.raises(CalibrationError, match="the calibration data is empty"):
        Calibration(data, Recording()).first()
    with pytest.raises(CalibrationError, match="the calibration data is empty"):
        Calibration(data, Recording()).run(Recording())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named(bad: float) -> None:
    dirty = X.clone()
    dirty[1, 1] = bad
    with pytest.raises(CalibrationError, match="calibration batch 2 holds NaN or infinity"):
        Calibration([X, X, dirty], Recording()).run(Recording())


def test_a_mask_of_minus_infinity_is_fine() -> None:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    assert len(seen([(X, mask)], example=(X, mask))) == 1


@pytest.mark.parametrize(
    ("batch", "what"),
    [
        (3, "batch 1 does not fit the model: it is a int"),
        ("text", "batch 1 does not fit the model: it is a str"),
        (None, "batch 1 is None"),
        ({"pixels": X}, r"batch 1 does not fit the model: given \(pixels=float32\[4, 3\]\)"),
        ((), r"batch 1 does not fit the model: given \(\)"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(batch: Any, what: str) -> None:
    class Typed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(CalibrationError, match=what):
        Calibration([X, batch], Typed()).run(Typed())


def test_a_batch_that_the_model_fails_on_is_named() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(CalibrationError, match=r"fails on calibration batch 1: RuntimeError: .*shape") as caught:
        Calibration([X, torch.ones(4, 5)], layer).run(layer)
    assert "fxq.inputs(loader, fn)" in str(caught.value)


def test_integers_are_data_too() -> None:
    tokens = torch.randint(0, 9, (2, 5))
    assert torch.equal(seen([tokens])[0], tokens)
