from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.structure.pruned import Net, check, image, structure_of, tokens
from tests.structure.rules.test_moves import OTHER, moved

FORMS: dict[str, Any] = {
    "flip": (lambda y: y.flip(1), 8, 8),
    "flip of several": (lambda y: torch.flip(y, [1, -1]), 8, 8),
    "a flip that meets what it flips": (lambda y: y + y.flip(1), 8, 8),
    "repeat_interleave": (lambda y: y.repeat_interleave(2, 1), 8, 16),
    "repeat_interleave by keywords": (lambda y: torch.repeat_interleave(y, repeats=3, dim=-3), 8, 24),
    "repeat": (lambda y: y.repeat(1, 2, 1, 1), 8, 16),
    "repeat of a tuple": (lambda y: y.repeat((1, 2, 1, 2)), 8, 16),
    "tile": (lambda y: torch.tile(y, (1, 3, 1, 1)), 8, 24),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    out = check(moved(*FORMS[form]), image(), others=OTHER)
    assert not out.structure.opaque
    assert out.pruned == ["a"]


def test_units_of_a_flip_are_pairs() -> None:
    group = structure_of(moved(*FORMS["a flip that meets what it flips"]), image()).group("a")
    assert group.size == 4
    assert group.members[0].units.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "function",
    [lambda y: y.repeat_interleave(torch.tensor([1, 2] * 4), 1, output_size=12), lambda y: y.repeat(2, 1, 1, 1, 1)[0]],
)
def test_what_is_not_said_by_numbers_stays(function: Any) -> None:
    structure = structure_of(moved(function, 8, 12 if "interleave" in str(function.__code__.co_names) else 8), image())
    assert not structure.group("a").prunable
    assert structure.opaque


def test_a_token_that_is_repeated_for_each_sample() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.out(torch.cat([m.token.repeat(x.shape[0], 1, 1), m.a(x)], 1)[:, 0])

    net = Net(forward, a=nn.Linear(8, 12), out=nn.Linear(12, 4), token=nn.Parameter(torch.randn(1, 1, 12)))
    out = check(net, tokens(), others=((tokens(3, 7),),))
    assert out.layer("a").out_features == 6
    assert out.gm.get_parameter("token").shape == (1, 1, 6)


def test_keys_that_groups_of_queries_share() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (layer(x).view(b, n, -1, 2).transpose(1, 2) for layer in (m.q, m.k, m.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))

    net = Net(forward, q=nn.Linear(8, 16), k=nn.Linear(8, 8), v=nn.Linear(8, 8), out=nn.Linear(16, 4))
    out = check(net, tokens(), others=((tokens(3, 7),),))
    assert out.structure.group("q").size == 4, "a head of keys goes with its two heads of queries"
    assert (out.layer("q").out_features, out.layer("k").out_features) == (8, 4)
