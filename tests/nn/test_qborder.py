"""The borders of int8 regions as modules."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from fxq.errors import GraphError
from fxq.nn import Dequantize, QPad, Quantize, dequantize, quantize
from fxq.quant.qparams import QParams

_P, _OTHER = QParams(0.1, 3), QParams(0.25, 200)


@pytest.mark.parametrize("parameters", [_P, _OTHER, QParams(0.02, 0)], ids=str)
def test_the_modules_compute_what_the_functions_do(parameters: QParams) -> None:
    x = torch.linspace(-40, 40, 120).view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    q = Quantize(parameters)(x)
    assert torch.equal(q, quantize(x, parameters.scale, parameters.zero_point))
    assert torch.equal(Dequantize(parameters)(q), dequantize(q, parameters.scale, parameters.zero_point))
    assert q.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_dequantising_to_bfloat16_rounds_the_float32_values() -> None:
    q = torch.arange(256, dtype=torch.uint8)
    module = Dequantize(_P).giving(torch.bfloat16)
    assert torch.equal(module(q), Dequantize(_P)(q).to(torch.bfloat16))
    assert repr(module) == "Dequantize(input=(0.1, 3), dtype=bfloat16)"
    with pytest.raises(GraphError, match=r"codes are dequantised to float16\n.*Dequantize(.|\n)*float32 or bfloat16"):
        Dequantize(_P, torch.float16)


def test_quantising_bfloat16_widens_first() -> None:
    x = torch.linspace(-40, 40, 121).to(torch.bfloat16)
    assert torch.equal(Quantize(_P)(x), Quantize(_P)(x.float()))


def test_the_state_dict_holds_the_parameters() -> None:
    x, q = torch.linspace(-5, 5, 20), torch.arange(20, dtype=torch.uint8)
    for kind, value in ((Quantize, x), (Dequantize, q)):
        module, other = kind(_P), kind(_OTHER)
        assert not torch.equal(module(value), other(value))
        module.load_state_dict(other.state_dict())
        assert torch.equal(module(value), other(value))
        assert repr(module) == repr(other)


def test_padding_follows_the_loaded_parameters() -> None:
    module, other = QPad((1, 1), _P, value=0.5), QPad((1, 1), _OTHER, value=0.5)
    assert (module.code, other.code) == (8, 202)
    module.load_state_dict(other.state_dict())
    assert module.code == 202
    assert module(torch.zeros(1, 1, dtype=torch.uint8)).tolist() == [[202, 0, 202]]


def test_what_people_read() -> None:
    assert repr(Quantize(_P)) == "Quantize(output=(0.1, 3))"
    assert repr(Dequantize(_P)) == "Dequantize(input=(0.1, 3))"
    assert Quantize(_P).describe() == Dequantize(_P).describe() == "torch"


def test_traced_into_they_are_the_functions() -> None:
    traced = fx.symbolic_trace(torch.nn.Sequential(Quantize(_P), Dequantize(_P)))
    assert [n.target for n in traced.graph.nodes if n.op == "call_function"] == [quantize, dequantize]
