"""Criteria by name, criteria of the user's, and what they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxq.errors import InputError
from fxq.pruning.criteria import CRITERIA, L1, Criterion, LayerCriterion, check_needs, resolve_criterion
from fxq.pruning.view import GroupView


def ones(group: GroupView) -> Tensor:
    return torch.ones(group.size)


def test_the_names() -> None:
    assert set(CRITERIA) == {
        "l1", "l2", "bn_scale", "taylor", "taylor_gate", "geometric_median", "activation", "apoz", "random",
    }  # fmt: skip
    for name, criterion in CRITERIA.items():
        assert isinstance(criterion, Criterion)
        assert resolve_criterion(name) is criterion
        assert criterion.name == name
        doc = type(criterion).__doc__ or ""
        assert name in ("random", "taylor") or ("arXiv:" in doc and "s_j" in doc)


def test_a_criterion_with_options_is_taken_as_it_is() -> None:
    greedy = L1(greedy=True)
    assert resolve_criterion(greedy) is greedy
    assert greedy.sequential
    assert not CRITERIA["l1"].sequential


def test_a_function_of_the_user_s() -> None:
    criterion = resolve_criterion(ones)
    assert isinstance(criterion, Criterion)
    assert not isinstance(criterion, LayerCriterion)
    assert (criterion.name, criterion.needs, criterion.sequential) == ("ones", frozenset(), False)


def test_a_function_may_say_what_it_needs() -> None:
    def sensitive(group: GroupView) -> Tensor:
        return torch.ones(group.size)

    sensitive.needs = {"gradients"}
    with pytest.raises(InputError, match="'sensitive' needs gradients"):
        check_needs(resolve_criterion(sensitive), data=True, gradients=False)
    sensitive.needs = {"grads"}
    with pytest.raises(InputError, match=r"needs \['grads'\]"):
        check_needs(resolve_criterion(sensitive), data=True, gradients=True)


def test_unknown_names_and_other_objects_are_refused() -> None:
    with pytest.raises(InputError, match=r"no criterion is called 'tailor'\n  fix: did you mean 'taylor'"):
        resolve_criterion("tailor")
    with pytest.raises(InputError, match=r"the criterion is the class L1\n  fix: give L1\(\)"):
        resolve_criterion(L1)
    with pytest.raises(InputError, match=r"the criterion is a int\n  fix: give a name \(l1, l2, bn_scale"):
        resolve_criterion(3)


def test_needs_are_checked() -> None:
    for name in ("activation", "apoz"):
        check_needs(CRITERIA[name], data=True, gradients=False)
        with pytest.raises(InputError, match=f"criterion '{name}' needs data"):
            check_needs(CRITERIA[name], data=False, gradients=True)
    for name in ("taylor", "taylor_gate"):
        check_needs(CRITERIA[name], data=False, gradients=True)
        with pytest.raises(InputError, match=f"criterion '{name}' needs gradients"):
            check_needs(CRITERIA[name], data=True, gradients=False)
    for name in ("l1", "l2", "bn_scale", "geometric_median", "random"):
        check_needs(CRITERIA[name], data=False, gradients=False)
