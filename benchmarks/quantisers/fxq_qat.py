"""fxq's training with quantisation, as far as it needs no choice: the float network teaches its int8 form.

The int8 form starts from calibrated ranges and the float network's weights, so at the first step it is what calibration
alone gives. Its loss is the distance of its logits from the float network's, with no label in it: what it can learn is
to come nearer to float, not to become another network, and little training is enough. Batch norms keep their statistics
and ranges stay as calibrated, or are learned (LSQ), so that nothing but the loss moves the network; the learning rate
falls from a small one to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

import fxq
from benchmarks.networks import TrainedNetwork
from benchmarks.networks.training import batches
from benchmarks.quantisers.fxq_tool import coverage
from benchmarks.quantisers.tool import Quantised, Tool

STEPS: Final = 120
_RATE: Final = 2e-5
#: Of the soft targets: at a high one the loss is the squared distance of the logits, whatever the labels are.
_TEMPERATURE: Final = 10.0


def _quantise(network: TrainedNetwork, example: Tensor, calibration: Sequence[Tensor], steps: int = STEPS) -> Quantised:
    prepared = fxq.prepare_qat(
        network.model, example, scales="learned", calibration=list(calibration), progress=False
    ).train()
    fxq.qat.Schedule(prepared, freeze_observers=0, freeze_batch_norm=0)
    loss = fxq.distill(prepared, network.model, temperature=_TEMPERATURE, alpha=1.0)
    learned = fxq.qat.learned_parameters(prepared)
    others = [p for p in prepared.parameters() if all(p is not q for q in learned)]
    optimiser = torch.optim.Adam([{"params": others}, {"params": learned, "lr": _RATE / 10}], lr=_RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for images, labels in batches(network.images.train, steps, seed=0):
        optimiser.zero_grad()
        loss(images, labels).backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        optimiser.step()
        rate.step()
    compiled = fxq.compile(prepared.eval(), progress=False)
    return Quantised(compiled, coverage(compiled))


TOOL = Tool("fxq-qat", "fxq, QAT", _quantise)
