"""Long work can be ended between its steps by whoever started it, and by nobody else."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from fxq.progress import checked_by, step, track


class EndedError(BaseException):
    pass


def _after(count: int) -> Callable[[], None]:
    left = [count]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise EndedError

    return check


@pytest.mark.parametrize("progress", [False, True])
def test_tracked_items_are_steps(progress: bool) -> None:
    seen: list[int] = []
    with pytest.raises(EndedError), checked_by(_after(3)):
        seen.extend(track(range(10), "counting", total=10, progress=progress))
    assert seen == [0, 1, 2]


def test_nobody_checks_outside_of_the_context_or_on_another_thread() -> None:
    with pytest.raises(EndedError), checked_by(_after(0)):
        step()
    step()
    calls: list[None] = []
    with checked_by(lambda: calls.append(None)):
        thread = threading.Thread(target=step)
        thread.start()
        thread.join()
    assert not calls


def test_the_innermost_check_counts() -> None:
    calls: list[str] = []
    with checked_by(lambda: calls.append("outer")):
        with checked_by(lambda: calls.append("inner")):
            step()
        step()
    assert calls == ["inner", "outer"]
