"""Modules that fake-quantise activations while a network trains, with ranges that are observed or learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxq.errors import CalibrationError, InputError
from fxq.nn.fake_quant import attach, fake_quantise, learned_fake_quantise, range_parameters, zero_point_of
from fxq.nn.recomputing import recomputing
from fxq.quant.observers import Observer, check_momentum
from fxq.quant.qparams import QParams

#: The least of a learned scale, in units, where it starts from 1 to 2.
LEAST_STEP = 0.125
_CODES = 256  # a power of two: dividing by it rounds nothing


class FakeQuantise(Observer):
    """Observes the range of its input in training mode, and gives the input back as its u8 codes stand for it.

    The range follows the smallest and the largest value of each batch by an exponential moving average (Jacob et al.,
    CVPR 2018, section 3.1). Values that share scale and zero point share the module; each is one of its sites, with an
    average of its own, and the range holds all of them. In eval mode nothing is observed. Before anything was observed
    the input is passed on as it is.

    Args:
        label: what is observed, for error messages.
        momentum: weight of a new batch, in (0, 1].
        sites: how many values share the module.

    Attributes:
        active: the switch of the observer.
        quantising: the switch of the fake quantisation.
        minimum, maximum: float32, shape (sites,). scale: float32, (1,). zero_point: int32, (1,).
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, label: str = "", momentum: float = 0.1, sites: int = 1) -> None:
        super().__init__(label)
        self.momentum = check_momentum(momentum)
        self.active, self.quantising = True, True
        self.minimum, self.maximum = torch.zeros(sites), torch.zeros(sites)
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self._seen = [False] * sites

    @property
    def sites(self) -> int:
        """How many values share the module."""
        return len(self._seen)

    @property
    def seen(self) -> bool:
        """Whether any value was observed."""
        return any(self._seen)

    def forward(self, x: Tensor, site: int = 0) -> Tensor:
        """Return ``x`` (any shape, floating point) fake-quantised, in its own dtype.

        Raises:
            CalibrationError: a value that is observed is NaN or infinite.
        """
        if self.active and self.training and x.numel() and not recomputing():
            self._observe(x.detach(), site)
        if not self.quantising or not self.seen:
            return self._pass_on(x)
        return self._fake(x) if self.training or torch.is_grad_enabled() else note_codes(self._fake(x), self.qparams())

    def qparams(self) -> QParams:
        """Return scale and zero point as they stand.

        Raises:
            CalibrationError: nothing was observed.
        """
        if not self.seen:
            raise CalibrationError("a value was never observed", where=self.label,
                                   why="the prepared model has seen no batch in training mode",
                                   fix="train it, or prepare it with calibration=loader")  # fmt: skip
        return QParams(float(self.scale), int(self.zero_point))

    @torch.no_grad()
    def set_range(self, lower: float, upper: float) -> None:
        """Start from a range that is known, widened to contain zero."""
        self.minimum.fill_(min(lower, 0.0))
        self.maximum.fill_(max(upper, 0.0))
        self._seen = [True] * self.sites
        self._refresh()

    def _observe(self, x: Tensor, site: int) -> None:
        lo, hi = (v[0] for v in self._range(x))
        if not bool(torch.isfinite(lo) & torch.isfinite(hi)):
            raise CalibrationError("a value is NaN or infinite", where=self.label,
                                   fix="clean the data, lower the learning rate, or look for the layer that overflows",
                                   )  # fmt: skip
        self._move(lo, hi, site)

    @torch.no_grad()
    def _move(self, lo: Tensor, hi: Tensor, site: int) -> None:
        lo, hi = lo.clamp_max(0.0), hi.clamp_min(0.0)
        weight = self.momentum if self._seen[site] else 1.0
        self.minimum[site].lerp_(lo, weight)
        self.maximum[site].lerp_(hi, weight)
        self._seen[site] = True
        self._refresh()

    def _refresh(self) -> None:
        """Write into the buffers what the range says: they stay the tensors that DistributedDataParallel knows."""
        scale, zero_point = range_parameters(self.minimum.min(), self.maximum.max())
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def _fake(self, x: Tensor) -> Tensor:
        return fake_quantise(x, self.scale, self.zero_point)

    def _pass_on(self, x: Tensor) -> Tensor:
        return x

    def _update(self, lo: Tensor, hi: Tensor) -> None:
        self._move(lo[0], hi[0], 0)

    def switches(self) -> list[bool]:
        """The switches of the observer and of the fake quantisation, and which sites were observed."""
        return [self.active, self.quantising, *self._seen]

    def set_switches(self, switches: list[bool]) -> None:
        """Take over what ``switches`` returned."""
        self.active, self.quantising, *self._seen = switches

    def get_extra_state(self) -> Tensor:
        """The switches, as a tensor: what a state dict holds."""
        return torch.tensor(self.switches(), device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what ``get_extra_state`` returned."""
        self.set_switches(state.tolist())

    def extra_repr(self) -> str:
        if not self.seen:
            return "nothing seen"
        return f"scale={float(self.scale):.6g}, zero_point={int(self.zero_point)}"


class LearnedFakeQuantise(FakeQuantise):
    """Fake quantisation whose scale and range are trained (LSQ, LSQ+).

    The first batch (or calibration) sets the range, the optimiser moves it from there. ``scale = step * unit`` with a
    power of two as the unit, fixed by the first batch: plain SGD moves the scale just as LSQ does, and an optimiser
    that looks away from the gradient's size, such as Adam, moves it in proportion. A scale that a step takes below an
    eighth of its unit, zero or negative, is put back there: see :func:`project`. (With SGD that is a sign of too large
    a learning rate: the authors of LSQ train 8 bits with 0.001.) A value that is never negative at first keeps its
    zero point at 0.

    Attributes:
        step, offset: parameters of one element; the scale, and the real value of code 0, in units.
    """

    unit: Tensor
    two_sided: Tensor

    def __init__(self, label: str = "", momentum: float = 0.1, sites: int = 1) -> None:
        super().__init__(label, momentum, sites)
        self.step, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.register_buffer("unit", torch.ones(1))
        self.register_buffer("two_sided", torch.zeros(1))

    def learned(self) -> tuple[Tensor, Tensor]:
        """Return the scale and the real value of code 0, which the optimiser moves.

        Raises:
            InputError: training has made one of them infinite, or not a number.
        """
        check_learned(self.step, self.label)
        check_learned(self.offset, self.label)
        scale = in_units(project(self.step, self.training), self.unit)
        return scale, in_units(self.offset, self.unit * _CODES) * self.two_sided.clone()

    def qparams(self) -> QParams:
        """Return the learned scale and zero point.

        Raises:
            CalibrationError: nothing was observed.
            InputError: the learned scale is not finite.
        """
        if not self.seen:
            return super().qparams()
        scale, lower = (v.detach() for v in self.learned())
        return QParams(float(scale), int(zero_point_of(lower, scale)))

    def _observe(self, x: Tensor, site: int) -> None:
        if not all(self._seen):
            super()._observe(x, site)

    def _move(self, lo: Tensor, hi: Tensor, site: int) -> None:
        lo, hi = _widest(lo, hi)
        super()._move(lo, hi, site)

    def _refresh(self) -> None:
        super()._refresh()
        self.unit.copy_(power_of_two(self.scale))
        self.two_sided.copy_(self.zero_point > 0)
        self.step.data.copy_(self.scale / self.unit)
        self.offset.data.copy_(-self.zero_point * self.scale / (self.unit * _CODES))

    def _fake(self, x: Tensor) -> Tensor:
        return learned_fake_quantise(x, *self.learned())

    def _pass_on(self, x: Tensor) -> Tensor:
        return attach(x, self.step, self.offset) if torch.is_grad_enabled() else x

    def extra_repr(self) -> str:
        if not self.seen:
            return "nothing seen"
        scale, lower = (float(v.detach() * self.unit) for v in (self.step, self.offset * _CODES))
        return f"scale={scale:.6g}, from {lower:.6g}, learned"


def note_codes(x: Tensor, qparams: QParams) -> Tensor:
    """Note on ``x`` which codes its values stand for, and return it; :func:`codes_of` reads the note."""
    x.fxq_codes = qparams  # type: ignore[attr-defined]
    return x


def codes_of(x: Tensor) -> QParams | None:
    """Return the note that :func:`note_codes` left on the very tensor ``x``; None where there is none."""
    found = getattr(x, "fxq_codes", None)
    return found if isinstance(found, QParams) else None


def check_learned(parameter: Tensor, label: str) -> None:
    """Raise InputError unless a learned parameter is finite."""
    if not bool(torch.isfinite(parameter).all()):
        raise InputError("a learned scale is NaN or infinite", where=label, why="the training diverged",
                         fix="lower the learning rate; fxq.qat.learned_parameters(prepared) lists the scales, for one "
                         "of their own")  # fmt: skip


def project(step: nn.Parameter, in_place: bool) -> Tensor:
    """Return ``step``, where a step of the optimiser has taken it below ``LEAST_STEP`` put back there.

    A scale is positive, and one far below that of the start gives up bits; so this is projected gradient descent. The
    parameter itself is put back where ``in_place``.
    """
    if not in_place:
        return step.clamp(min=LEAST_STEP)
    with torch.no_grad():
        step.data.clamp_(min=LEAST_STEP)
    return step


def power_of_two(scale: Tensor) -> Tensor:
    """Return the largest powers of two that are not above positive ``scale``."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.full_like(mantissa, 0.5), exponent)


def in_units(parameter: Tensor, unit: Tensor) -> Tensor:
    """Return ``parameter * unit`` with the gradient divided by the unit, as if the product were the parameter.

    A step of SGD then moves the product as far as it would move a parameter that holds it.
    """
    out: Tensor = _InUnits.apply(parameter, unit)  # type: ignore[no-untyped-call]
    return out


class _InUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, unit: Tensor) -> Tensor:
        # a copy, as buffers change in place before the backward: at the next site, or by DistributedDataParallel
        ctx.save_for_backward(unit.clone())
        return parameter * unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (unit,) = ctx.saved_tensors
        return gradients[0] / unit, None


def _widest(lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """The range over all processes of a distributed run: parameters that start alike stay alike."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return lo, hi
    ends = torch.stack([-lo, hi])
    torch.distributed.all_reduce(ends, torch.distributed.ReduceOp.MAX)
    return -ends[0], ends[1]
