"""Epilogues: names, parameters and their use."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fxq.errors import GraphError
from fxq.nn import Epilogue

_CASES = [
    (Epilogue(), lambda y: y, "none"),
    (Epilogue("relu"), F.relu, "relu"),
    (Epilogue("relu6"), F.relu6, "relu6"),
    (Epilogue("hardtanh", (0, 6)), F.relu6, "hardtanh(0, 6)"),
    (Epilogue("hardswish"), F.hardswish, "hardswish"),
    (Epilogue("silu"), F.silu, "silu"),
    (Epilogue("gelu", ("tanh",)), lambda y: F.gelu(y, approximate="tanh"), "gelu(tanh)"),
    (Epilogue("leaky_relu", (0.2,)), lambda y: F.leaky_relu(y, 0.2), "leaky_relu(0.2)"),
    (Epilogue("sigmoid"), torch.sigmoid, "sigmoid"),
    (Epilogue("tanh"), torch.tanh, "tanh"),
    (Epilogue("hardsigmoid"), F.hardsigmoid, "hardsigmoid"),
]


@pytest.mark.parametrize(("epilogue", "expected", "text"), _CASES, ids=[c[2] for c in _CASES])
def test_activation_and_text(epilogue: Epilogue, expected: object, text: str) -> None:
    y = torch.randn(100, generator=torch.Generator().manual_seed(0)) * 4
    assert callable(expected)
    assert torch.equal(epilogue.apply(y), expected(y))
    assert str(epilogue) == text


@pytest.mark.parametrize("epilogue", [case[0] for case in _CASES], ids=[c[2] for c in _CASES])
@pytest.mark.parametrize("add", [False, True])
def test_over_its_own_tensor_it_gives_the_same_bits(epilogue: Epilogue, add: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    y, residual = (torch.randn(100, generator=generator) * 4 for _ in range(2))
    epilogue = Epilogue(epilogue.activation, epilogue.params, add)
    expected = epilogue.apply(y, *[residual] * add)
    own, kept = y.clone(), residual.clone()
    found = epilogue.apply_to_own(own, *[residual] * add)
    assert torch.equal(found, expected)
    assert torch.equal(residual, kept)
    overwritten = found.data_ptr() == own.data_ptr()
    assert overwritten is (not add and epilogue.activation != "gelu")
    assert found.data_ptr() != residual.data_ptr()


def test_what_gradients_need_is_not_overwritten() -> None:
    y = torch.tensor([-1.0, 2.0], requires_grad=True)
    out = Epilogue("hardswish").apply_to_own(y * 1.0)
    out.sum().backward()
    expected = torch.tensor([-1.0, 2.0], requires_grad=True)
    F.hardswish(expected).sum().backward()
    assert torch.equal(y.grad, expected.grad)  # type: ignore[arg-type]


def test_residual_is_added_before_the_activation() -> None:
    y, residual = torch.tensor([1.0, -3.0]), torch.tensor([-2.0, 5.0])
    assert torch.equal(Epilogue("relu", add=True).apply(y, residual), torch.tensor([0.0, 2.0]))
    assert str(Epilogue("relu", add=True)) == "add_relu"
    assert y.tolist() == [1.0, -3.0]


def test_the_sum_lies_in_memory_as_its_first_summand() -> None:
    y, residual = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert Epilogue(add=True).apply(y, residual).stride() == y.stride()
    assert Epilogue(add=True, residual_first=True).apply(y, residual).stride() == residual.stride()
    assert str(Epilogue(add=True, residual_first=True)) == "add"


def test_misuse_is_refused() -> None:
    with pytest.raises(GraphError, match="did you mean 'relu"):
        Epilogue("rellu")
    with pytest.raises(GraphError, match="takes 2 parameters"):
        Epilogue("hardtanh")
    with pytest.raises(GraphError, match="a residual was not given"):
        Epilogue(add=True).apply(torch.zeros(1))
    with pytest.raises(GraphError, match="a residual was given"):
        Epilogue().apply(torch.zeros(1), torch.zeros(1))
