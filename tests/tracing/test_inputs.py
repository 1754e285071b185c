from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from fxq.errors import InputError
from fxq.tracing import ModelInputs, clone_inputs, normalise_inputs

X, Y = torch.zeros(2, 3), torch.ones(2, 3)
Pair = namedtuple("Pair", ["first", "second"])


class TwoArguments(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


class OneDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"]


class Keywords(nn.Module):
    def forward(self, **batch: Tensor) -> Tensor:
        return batch["image"]


def test_none_stays_none() -> None:
    assert normalise_inputs(TwoArguments(), None) is None


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, Y), (X, Y), {}),
        ([X, Y], (X, Y), {}),
        (Pair(X, Y), (X, Y), {}),
        ({"x": X, "mask": Y}, (), {"x": X, "mask": Y}),
        (OrderedDict(x=X), (), {"x": X}),
        (ModelInputs((X,), {"mask": Y}), (X,), {"mask": Y}),
    ],
)
def test_every_form_becomes_the_arguments_of_forward(given: object, args: tuple, kwargs: dict) -> None:
    inputs = normalise_inputs(TwoArguments(), given)
    assert inputs is not None
    assert len(inputs.args) == len(args)
    assert all(a is b for a, b in zip(inputs.args, args, strict=True))
    assert inputs.kwargs.keys() == kwargs.keys()
    assert all(inputs.kwargs[name] is kwargs[name] for name in kwargs)


def test_a_dict_that_does_not_bind_is_the_one_argument() -> None:
    batch = {"image": X}
    inputs = normalise_inputs(OneDict(), batch)
    assert inputs is not None
    assert inputs.args == (batch,)
    assert inputs.kwargs == {}


def test_a_dict_binds_to_keyword_arguments() -> None:
    assert normalise_inputs(Keywords(), {"image": X}) == ModelInputs((), {"image": X})


def test_the_signature_of_a_graph_module_is_its_forward() -> None:
    gm = torch.fx.symbolic_trace(TwoArguments())
    assert normalise_inputs(gm, {"x": X}) == ModelInputs((), {"x": X})
    with pytest.raises(InputError, match="do not fit"):
        normalise_inputs(gm, (X, X, X))


@pytest.mark.parametrize("given", [(X, X, X), {"image": X, 3: X}, {"y": X, "mask": X}, ()])
def test_inputs_that_do_not_bind_name_the_signature_and_what_was_given(given: object) -> None:
    model = TwoArguments() if not isinstance(given, dict) or 3 not in given else Keywords()
    with pytest.raises(InputError, match="do not fit the model") as caught:
        normalise_inputs(model, given)
    assert "forward(" in str(caught.value)
    if given:
        assert "float32[2, 3]" in str(caught.value)


def test_other_types_are_refused() -> None:
    with pytest.raises(InputError, match="example_inputs is a int"):
        normalise_inputs(TwoArguments(), 3)


@dataclass
class Batch:
    image: Tensor
    names: list[str]


def test_clones_are_independent_and_keep_structure() -> None:
    leaf = torch.ones(2, requires_grad=True)
    shared = torch.zeros(2)
    inputs = ModelInputs(
        (shared, [shared, (leaf * 2, 1)], Pair(shared, None), Batch(shared, ["a"])), {"d": OrderedDict(k=shared)}
    )
    clones = clone_inputs(inputs)
    clones.args[0].add_(1)
    assert torch.equal(shared, torch.zeros(2))
    assert clones.args[1][0] is clones.args[0]
    assert clones.args[1][1][0].requires_grad is False
    assert clones.args[1][1][1] == 1
    assert isinstance(clones.args[2], Pair)
    assert clones.args[3].image is clones.args[0]
    assert inputs.args[3].image is shared
    assert isinstance(clones.kwargs["d"], OrderedDict)
    assert clones.kwargs["d"]["k"] is clones.args[0]
