from __future__ import annotations

import operator

from torch import nn

from fxq.ir.names import function_name, redefined


class Bigger(nn.Linear):
    def __init__(self, size: int) -> None:
        super().__init__(size, 2 * size)


class Named(Bigger):
    def extra_repr(self) -> str:
        return "bigger"


class Doubled(Bigger):
    def __call__(self, *args: object) -> object:
        return super().__call__(*args)


class Helped(Bigger):
    def helper(self) -> None: ...


def test_a_constructor_and_new_names_redefine_nothing() -> None:
    assert redefined(Bigger, nn.Linear) == set()
    assert redefined(Helped, nn.Linear) == set()
    assert redefined(nn.Linear, nn.Linear) == set()


def test_what_is_overridden_is_named() -> None:
    assert redefined(Named, nn.Linear) == {"extra_repr"}
    assert redefined(Doubled, nn.Linear) == {"__call__"}


def test_full_names() -> None:
    assert function_name(operator.add) == "_operator.add"
    assert function_name("relu") == ""
    assert function_name(nn.Linear) == "torch.nn.modules.linear.Linear"
