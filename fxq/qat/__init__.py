"""Quantisation-aware training: switches and schedule of what :func:`fxq.prepare_qat` returns."""

from __future__ import annotations

from fxq.qat.schedule import Schedule as Schedule
from fxq.qat.switches import disable_fake_quant as disable_fake_quant
from fxq.qat.switches import disable_observers as disable_observers
from fxq.qat.switches import enable_fake_quant as enable_fake_quant
from fxq.qat.switches import enable_observers as enable_observers
from fxq.qat.switches import freeze_batch_norm as freeze_batch_norm
from fxq.qat.switches import is_prepared as is_prepared
from fxq.qat.switches import learned_parameters as learned_parameters
from fxq.qat.switches import unfreeze_batch_norm as unfreeze_batch_norm
