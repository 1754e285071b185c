from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fxq.ir.metrics import distance, tensors_in


def test_equal() -> None:
    x = torch.randn(3, 4)
    d = distance(x, x.clone())
    assert (d.equal, d.sqnr_db, d.cosine, d.max_abs) == (True, math.inf, 1.0, 0.0)
    assert d.scale == float(x.abs().max())


def test_sqnr_by_hand() -> None:
    reference = torch.tensor([3.0, 4.0])
    d = distance(reference, torch.tensor([3.0, 4.5]))
    assert not d.equal
    assert d.sqnr_db == pytest.approx(20.0)  # 25 / 0.25
    assert d.max_abs == 0.5
    assert d.cosine == pytest.approx((9 + 18) / math.sqrt(25 * 29.25))


def test_a_factor_changes_the_ratio_and_not_the_cosine() -> None:
    x = torch.arange(1.0, 9.0)
    d = distance(x, 100 * x)
    assert d.cosine == pytest.approx(1.0)
    assert d.sqnr_db == pytest.approx(-20 * math.log10(99))


def test_all_tensors_count_together() -> None:
    a, b = torch.ones(2), torch.full((2,), 10.0)
    d = distance((a, {"b": b}), (a, {"b": b + 1}))
    assert d.sqnr_db == pytest.approx(10 * math.log10(202 / 2))
    assert d.scale == 10.0


def test_nan_is_equal_to_nan_and_to_nothing_else() -> None:
    nan = torch.tensor([1.0, float("nan")])
    assert distance(nan, nan.clone()).equal
    d = distance(nan, torch.tensor([1.0, 0.0]))
    assert not d.equal
    assert (d.sqnr_db, d.max_abs) == (-math.inf, math.inf)
    assert distance(torch.ones(2), nan).max_abs == math.inf


def test_what_is_not_finite_in_both_hides_nothing() -> None:
    for value in (math.inf, -math.inf, math.nan):
        d = distance(torch.tensor([3.0, 4.0, value]), torch.tensor([3.0, 4.5, value]))
        assert d.sqnr_db == pytest.approx(20.0)
        assert (d.max_abs, d.scale) == (0.5, 4.0)


def test_infinities() -> None:
    inf = torch.tensor([1.0, math.inf])
    assert distance(inf, torch.tensor([1.0, 2.0])).sqnr_db == -math.inf
    assert distance(inf, inf.clone()).equal
    assert not distance(inf, torch.tensor([1.0, -math.inf])).equal
    assert not distance(inf, torch.tensor([1.0, torch.finfo(torch.float32).max])).equal


def test_silence_against_noise() -> None:
    d = distance(torch.zeros(3), torch.full((3,), 1e-7))
    assert d.sqnr_db == -math.inf
    assert d.max_abs == pytest.approx(1e-7)


def test_dtypes_count() -> None:
    x = torch.ones(3)
    d = distance(x, x.double())
    assert not d.equal
    assert d.sqnr_db == math.inf
    assert distance((x, x.bfloat16()), (x, x.bfloat16())).eps == torch.finfo(torch.bfloat16).eps
    assert distance(torch.tensor([1, 2]), torch.tensor([1, 3])).eps == 0.0


def test_complex_values() -> None:
    reference = torch.complex(torch.tensor([3.0]), torch.tensor([4.0]))
    assert distance(reference, reference.clone()).equal
    assert distance(reference, reference + 0.5j).sqnr_db == pytest.approx(20.0)


def test_empty_and_missing_tensors() -> None:
    assert distance(torch.empty(0), torch.empty(0)).equal
    assert distance((), ()).equal


def test_structures_must_agree() -> None:
    x = torch.ones(2)
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\) and \(3,\)"):
        distance(x, torch.ones(3))
    with pytest.raises(ValueError, match=r"longer|shorter"):
        distance((x, x), (x,))


def test_tensors_of_nested_outputs() -> None:
    @dataclass
    class Output:
        logits: Tensor
        rest: list[Tensor]

    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    found = list(tensors_in({"first": a, "second": (Output(b, [c]), None, 3)}))
    assert [id(t) for t in found] == [id(a), id(b), id(c)]
