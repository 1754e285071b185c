from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxq.analysis.profile import profile
from tests.structure.pruned import Net, check, structure_of, tokens

OTHER = ((tokens(3, 7),),)


def packed(m: Any, x: Tensor) -> Tensor:
    """Attention of 4 heads."""
    b, n, _c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 4, 4).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhid, bhjd -> bhij", q, k).softmax(-1)
    return m.out(torch.einsum("bhij,bhjd->bihd", scores, v).reshape(b, n, 16))


def test_attention_loses_whole_heads() -> None:
    out = check(Net(packed, qkv=nn.Linear(8, 48), out=nn.Linear(16, 4)), tokens(), others=OTHER)
    assert out.structure.group("qkv").size == 4
    assert not out.structure.opaque


FORMS: dict[str, Any] = {
    "a contraction": lambda m, x: m.out(torch.einsum("bic,bjc->bij", m.a(x), m.b(x)) @ m.a(x)),
    "an outer product": lambda m, x: m.out(torch.einsum("bic,bid->bicd", m.a(x), m.a(x)).sum(2)),
    "letters without a result": lambda m, x: m.out(torch.einsum("bic,bic", m.a(x), m.b(x)) * m.a(x)),
    "an implied result": lambda m, x: m.out(torch.einsum("bic,bjc", m.a(x), m.b(x)) @ m.a(x)),
    "one operand": lambda m, x: m.out(torch.einsum("bic->ibc", m.a(x)).transpose(0, 1)),
    "a list of operands": lambda m, x: m.out(torch.einsum("bic,bic->bic", [m.a(x), m.b(x)])),
    "a sum of one of them": lambda m, x: m.out(torch.einsum("bic,bjc->bic", m.a(x), m.b(x))),
    "a dimension of length 1": lambda m, x: m.out(torch.einsum("bic,bic->bic", m.a(x), m.a(x).mean(1, keepdim=True))),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    net = Net(FORMS[form], a=nn.Linear(8, 12), b=nn.Linear(8, 12), out=nn.Linear(12, 4))
    out = check(net, tokens(), others=OTHER)
    assert not out.structure.opaque
    assert out.layer("a").out_features == 6
    assert out.structure.costs().macs == profile(out.structure.gm, out.inputs).macs


@pytest.mark.parametrize("equation", ["...c,...c->...c", "bic,bic,bic->bic"])
def test_what_the_letters_do_not_say_is_opaque(equation: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.einsum(equation, *[m.a(x)] * (equation.count(",") + 1)))

    structure = structure_of(Net(forward, a=nn.Linear(8, 12), out=nn.Linear(12, 4)), tokens())
    assert [o.kind for o in structure.opaque] == ["einsum"]
    assert not structure.group("a").prunable


def test_a_diagonal() -> None:
    net = Net(lambda m, x: m.out(torch.einsum("bicc->bic", m.a(x).unsqueeze(2) + m.b(x).unsqueeze(3))),
              a=nn.Linear(8, 12), b=nn.Linear(8, 12), out=nn.Linear(12, 4))  # fmt: skip
    assert check(net, tokens(), others=OTHER).layer("a").out_features == 6
