"""What the int8 operations without weights share: their scales and zero points as state, a derived form that is not."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from fxq.nn.kernels import BACKENDS, KernelSet, kernel_set
from fxq.quant.qparams import QParams

State = dict[str, list[tuple[float, int]]]


class QOperation(nn.Module):
    """An operation on codes without weights.

    The QParams (or tuples of them) named in ``qparams_names`` are saved as the state dict's extra state, as plain
    numbers. What a subclass derives from them in ``_derived`` is built at the first call, and never saved or copied.
    """

    qparams_names: ClassVar[tuple[str, ...]]
    backend: str

    def __init__(self, backend: str) -> None:
        super().__init__()
        kernel_set(backend)  # fails here rather than at the first call
        self.backend = backend
        self._derived: Any = None
        self.eval()

    def describe(self) -> str:
        """The name of the kernel that computes this operation."""
        return "reference"

    def _kernels(self, q: Tensor) -> KernelSet:
        return kernel_set(self.backend) if q.device.type == "cpu" else BACKENDS["reference"]

    def get_extra_state(self) -> State:
        """name -> [(scale, zero point), ...]."""
        state = {}
        for name in self.qparams_names:
            value = getattr(self, name)
            state[name] = [(p.scale, p.zero_point) for p in ([value] if isinstance(value, QParams) else value)]
        return state

    def set_extra_state(self, state: State) -> None:
        """Take over what ``get_extra_state`` returned."""
        for name, numbers in state.items():
            loaded = [QParams(*pair) for pair in numbers]
            setattr(self, name, loaded[0] if isinstance(getattr(self, name), QParams) else tuple(loaded))
        self._derived = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._derived = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_derived": None}

    def extra_repr(self) -> str:
        parts = []
        for name in self.qparams_names:
            value = getattr(self, name)
            for p in [value] if isinstance(value, QParams) else value:
                parts.append(f"{name}=({p.scale:.6g}, {p.zero_point})")
        return ", ".join(parts)
