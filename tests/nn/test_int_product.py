from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxq.nn import onednn_available
from fxq.nn.kernels import int_product as module
from fxq.nn.kernels.int_product import int_mm_is_exact, int_product

BACKENDS = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(not onednn_available(), reason="no VNNI"))]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inputs", [1, 2, 3, 64, 97])
@pytest.mark.parametrize("outputs", [1, 2, 48, 101])
def test_sums_are_exact(inputs: int, outputs: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs)
    for many in (module.MANY, 0):
        monkeypatch.setattr(module, "MANY", many)
        product = int_product(weight, scale, backend)
        for rows in (0, 1, 2, 17):
            codes = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8)
            wanted = (codes.double() @ weight.double().t()).float() * scale
            assert torch.equal(product(codes), wanted)


def test_a_weight_without_elements() -> None:
    assert (
        int_product(torch.zeros(3, 0, dtype=torch.int8), torch.ones(3), "onednn")(
            torch.zeros(2, 0, dtype=torch.int8)
        ).tolist()
        == [[0.0] * 3] * 2
    )


@pytest.mark.skipif(not onednn_available(), reason="no VNNI")
def test_the_largest_sums() -> None:
    weight = torch.full((5, 4096), 127, dtype=torch.int8)
    for rows in (1, 3, 40):
        y = int_product(weight, torch.ones(5), "onednn")(torch.full((rows, 4096), -128, dtype=torch.int8))
        assert torch.equal(y, torch.full((rows, 5), -128.0 * 127 * 4096))


def test_the_first_question_under_a_fake_mode_is_answered_anew() -> None:
    module._int_mm_sums_largest.cache_clear()
    with FakeTensorMode():
        assert not int_mm_is_exact()
    assert int_mm_is_exact() == module._int_mm_sums_largest()
