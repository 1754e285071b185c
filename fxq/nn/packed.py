"""What layers with quantised weights share: buffers as state, a packed form that is derived from them."""

from __future__ import annotations

from typing import Any

from torch import nn


class Packed(nn.Module):
    """A module that packs its buffers at the first call.

    The packed form in ``_derived`` is never saved or copied, and dropped whenever the buffers change through ``to`` or
    ``load_state_dict``. ``half()`` and the like leave the buffers' dtypes alone, because scales must stay float32.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: Any = None

    def let_go(self) -> None:
        """Free the packed form; the next call packs again."""
        self._derived = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": None}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        self._derived = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._derived = None
