"""Whether a forward runs inside a backward: gradient checkpointing computes a part a second time."""

from __future__ import annotations

import torch


def recomputing() -> bool:
    """Whether this is called from within autograd's backward.

    There ``torch.utils.checkpoint`` repeats a forward that was seen already: what it shows must not count twice.
    """
    return bool(torch._C._current_graph_task_id() != -1)
