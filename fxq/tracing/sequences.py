"""Packed sequences of traced values: their functions are one node each, as they test what only the run knows.

``pack_padded_sequence`` asks whether the lengths are to be sorted, ``pad_packed_sequence`` whether they were, and a
``PackedSequence`` made by hand where its sizes lie. Traced through, a graph would hold one answer for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch.nn.utils import rnn

from fxq.tracing.proxies import first_proxy

SEQUENCE_FUNCTIONS: Final[tuple[Callable[..., Any], ...]] = (
    rnn.pack_padded_sequence,
    rnn.pad_packed_sequence,
    rnn.pack_sequence,
    rnn.unpack_sequence,
    rnn.pad_sequence,
    rnn.unpad_sequence,
)


@contextmanager
def sequences_made_unchecked() -> Iterator[None]:
    """Within this context a ``PackedSequence`` takes traced fields as they are; the graph makes and checks it anew."""
    module: Any = rnn
    original = module._packed_sequence_init_args

    def fields(data: Any, batch_sizes: Any = None, order: Any = None, back: Any = None) -> Any:
        if batch_sizes is None or first_proxy(data, batch_sizes, order, back) is None:
            return original(data, batch_sizes, order, back)
        return data, batch_sizes, order, rnn.invert_permutation(order) if back is None else back

    module._packed_sequence_init_args = fields
    try:
        yield
    finally:
        module._packed_sequence_init_args = original
