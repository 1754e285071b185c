from __future__ import annotations

import numpy as np

from fxq.structure.solve import solve
from fxq.structure.space import Space


def test_ties_carry_protection() -> None:
    space = Space()
    a, b, c = (space.fresh(name, 3) for name in "abc")
    space.tie(a, b)
    space.tie(b[:1], c[2:])
    space.protect(c[2:], "because")
    solution = solve(space)
    assert solution.labels.tolist() == [0, 1, 2, 0, 1, 2, 6, 7, 0]
    assert solution.stays.tolist() == [True, False, False] * 2 + [False, False, True]
    assert solution.reasons == {0: "because"}


def test_a_tie_of_a_value_with_itself_says_nothing() -> None:
    space = Space()
    a = space.fresh("a", 3)
    space.tie(a, a.copy())
    assert not space.ties


def test_a_reshape_is_carried_by_the_finest_dimension() -> None:
    space = Space()
    whole, outer, inner = space.fresh("whole", 6), space.fresh("outer", 2), space.fresh("inner", 3)
    space.factor(whole, (outer, inner), (2, 3), "view")
    solution = solve(space)
    assert solution.stays[outer].all()
    assert not solution.stays[inner].any()
    assert solution.labels[whole].tolist() == solution.labels[np.tile(inner, 2)].tolist()
    assert "view" in solution.reasons[int(outer[0])]


def test_of_dimensions_as_fine_the_first_carries() -> None:
    space = Space()
    whole, outer, inner = space.fresh("whole", 4), space.fresh("outer", 2), space.fresh("inner", 2)
    space.factor(whole, (outer, inner), (2, 2), "view")
    solution = solve(space)
    assert solution.stays[inner].all()
    assert not solution.stays[outer].any()


def test_a_protected_dimension_forces_the_choice() -> None:
    space = Space()
    whole, outer, inner = space.fresh("whole", 6), space.fresh("outer", 2), space.fresh("inner", 3)
    space.factor(whole, (outer, inner), (2, 3), "view")
    space.protect(inner[:], "fixed")
    solution = solve(space)
    assert not solution.stays[outer].any()
    assert solution.labels[whole].tolist() == solution.labels[np.repeat(outer, 3)].tolist()


def test_protection_inside_the_whole_reaches_the_dimension_that_carries() -> None:
    space = Space()
    whole, inner = space.fresh("whole", 6), space.fresh("inner", 3)
    space.factor(whole, (None, inner), (2, 3), "view")
    space.protect(whole[4:5], "fixed")
    solution = solve(space)
    assert solution.stays[inner].tolist() == [False, True, False]
    assert solution.stays[whole].tolist() == [False, True, False] * 2


def test_a_reshape_without_a_dimension_to_carry_protects_the_whole() -> None:
    space = Space()
    whole = space.fresh("whole", 6)
    space.factor(whole, (None, None), (2, 3), "view")
    assert solve(space).stays.all()


def test_a_decided_reshape_forces_the_next() -> None:
    """Two reshapes of one value: what the first protects the second cannot choose."""
    space = Space()
    whole, outer, inner = space.fresh("whole", 6), space.fresh("outer", 2), space.fresh("inner", 3)
    again = space.fresh("again", 6)
    space.factor(again, (outer, inner), (2, 3), "second")
    space.factor(whole, (outer, inner), (2, 3), "first")
    space.protect(inner, "fixed")
    solution = solve(space)
    assert solution.labels[whole].tolist() == solution.labels[again].tolist()
