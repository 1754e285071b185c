"""Knowledge distillation: a loss that lives in the user's training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.compression.features import Features
from fxq.compression.regressor import Regressor, differing_dim
from fxq.errors import InputError
from fxq.tracing import ModelInputs, normalise_inputs

#: ``{"student name": "teacher name"}``, pairs of names, or names that mean the same in both networks.
Hints = Mapping[str, str] | Iterable[str | tuple[str, str]]


class Distillation(nn.Module):
    """The loss that :func:`distill` returns; its parameters are those of the hints' regressors, if there are any.

    Attributes:
        terms: the parts of the last loss, detached and unweighted: ``"soft"``, ``"task"`` and ``"hints"``.
        regressors: one for each hint; an ``nn.Identity`` where both networks have the same width.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 4.0,
        alpha: float = 0.9,
        hints: Hints | None = None,
        hint_weight: float = 1.0,
        task_loss: Callable[[Any, Any], Tensor] | None = None,
        logits: Callable[[Any], Tensor] | None = None,
        example_inputs: Any = None,
    ) -> None:
        super().__init__()
        _check_options(temperature, alpha, hint_weight)
        _check_apart(student, teacher)
        self.temperature, self.alpha, self.hint_weight = float(temperature), float(alpha), float(hint_weight)
        self.hints = _pairs(hints)
        self.terms: dict[str, Tensor] = {}
        self._student = Features(student, dict.fromkeys(s for s, _ in self.hints), "student")
        self._teacher = Features(teacher, dict.fromkeys(t for _, t in self.hints), "teacher")
        self._task_loss = task_loss
        self._logits = logits
        self.regressors = nn.ModuleList(nn.Identity() for _ in self.hints)
        if self.hints and example_inputs is not None:
            self._make_regressors(example_inputs)

    def forward(
        self, batch_inputs: Any = None, targets: Any = None, *, student_outputs: Any = None, teacher_outputs: Any = None
    ) -> Tensor:
        """Return the loss of one batch, a scalar.

        Args:
            batch_inputs: what both networks take: a tensor, a tuple of arguments or a dict of keyword arguments.
            targets: for the task loss; not needed where ``alpha`` is 1.
            student_outputs, teacher_outputs: outputs on the batch where they are known already; the network does not
                run then. Not with hints, whose values come from running.

        Raises:
            InputError: the inputs do not fit, a hint's value is no tensor or of another size, outputs need ``logits``,
                targets are missing or need a ``task_loss``.
        """
        if self.hints and (student_outputs is not None or teacher_outputs is not None):
            raise InputError("outputs that are known already are given beside hints", where="distill",
                             why="the values at the hints come from running both networks",
                             fix="give batch_inputs alone")  # fmt: skip
        student_values: dict[str, Tensor] = {}
        teacher_values: dict[str, Tensor] = {}
        if student_outputs is None:
            student_outputs, student_values = self._student.run(_bind(self._student, batch_inputs))
        if teacher_outputs is None and (self.alpha > 0.0 or self.hints):
            with torch.no_grad(), _evaluating(self._teacher.network):
                teacher_outputs, teacher_values = self._teacher.run(_bind(self._teacher, batch_inputs))
        weighted: list[Tensor] = []
        self.terms = {}
        if self.alpha > 0.0:
            weighted.append(self.alpha * self._note("soft", self._soft_loss(student_outputs, teacher_outputs)))
        if self.alpha < 1.0:
            weighted.append((1.0 - self.alpha) * self._note("task", self._task(student_outputs, targets)))
        if self.hints:
            weighted.append(self.hint_weight * self._note("hints", self._hint_loss(student_values, teacher_values)))
        return sum(weighted[1:], start=weighted[0])

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}, alpha={self.alpha:g}, hints={len(self.hints)}"

    # -- the parts ---------------------------------------------------------------------------------------------

    def _note(self, name: str, term: Tensor) -> Tensor:
        self.terms[name] = term.detach()
        return term

    def _soft_loss(self, student_outputs: Any, teacher_outputs: Any) -> Tensor:
        """T^2 KL(softmax(t / T) || softmax(s / T)), the mean over the batch (and over positions, classes in dim 1)."""
        student = self._scores(student_outputs, "student")
        teacher = self._scores(teacher_outputs, "teacher").detach()
        if student.shape != teacher.shape:
            raise InputError(
                f"the student's logits are {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}",
                where="distill", fix="pass logits=fn that picks logits of the same classes out of both outputs",
            )  # fmt: skip
        log_s, log_t = (F.log_softmax(x / self.temperature, dim=-1) for x in (_rows(student), _rows(teacher)))
        return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * self.temperature**2

    def _scores(self, outputs: Any, role: str) -> Tensor:
        scores = outputs if self._logits is None else self._logits(outputs)
        if isinstance(scores, Tensor) and scores.dim() >= 2:
            return scores
        if isinstance(scores, Tensor):
            what = f"the {role}'s logits have {scores.dim()} dimensions, where (batch, classes, ...) is needed"
        elif isinstance(scores, Mapping):
            what = f"the {role} returns a {type(scores).__name__} with the keys {', '.join(map(repr, scores))}"
        else:
            what = f"the {role} returns a {type(scores).__name__}"
        raise InputError(what, where="distill", fix="pass logits=fn that takes an output and returns its logits")

    def _task(self, student_outputs: Any, targets: Any) -> Tensor:
        if targets is None:
            raise InputError("there are no targets", where="distill",
                             why=f"the task loss has the weight 1 - alpha = {1.0 - self.alpha:g}",
                             fix="give targets, or alpha=1.0 to learn from the teacher alone")  # fmt: skip
        if self._task_loss is not None:
            return self._task_loss(student_outputs, targets)
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype is torch.bool:
            kind = str(targets.dtype) if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(f"the targets are {kind}, not class indices", where="distill",
                             fix="pass task_loss=fn(outputs, targets)")  # fmt: skip
        return F.cross_entropy(self._scores(student_outputs, "student"), targets)

    def _hint_loss(self, student_values: dict[str, Tensor], teacher_values: dict[str, Tensor]) -> Tensor:
        losses = []
        for (ours, theirs), regressor in zip(self.hints, self.regressors, strict=True):
            value, wanted = regressor(student_values[ours]), teacher_values[theirs]
            if value.shape != wanted.shape:
                differing_dim(value, wanted, f"{ours!r} and {theirs!r}")
                raise InputError(
                    f"the widths of {ours!r} and {theirs!r} differ: {tuple(value.shape)} and {tuple(wanted.shape)}",
                    where="hints", why="a regressor must exist before the optimiser takes d.parameters()",
                    fix="pass example_inputs=... to distill",
                )  # fmt: skip
            losses.append(F.mse_loss(value, wanted))
        return torch.stack(losses).sum()

    def _make_regressors(self, example_inputs: Any) -> None:
        values = []
        for features in (self._student, self._teacher):
            with torch.no_grad(), _evaluating(features.network):
                values.append(features.run(_bind(features, example_inputs))[1])
        for i, (ours, theirs) in enumerate(self.hints):
            value, wanted = values[0][ours], values[1][theirs]
            if value.shape != wanted.shape:
                dim = differing_dim(value, wanted, f"{ours!r} and {theirs!r}")
                self.regressors[i] = Regressor(value, wanted, dim)


def distill(
    student: nn.Module,
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    hints: Hints | None = None,
    hint_weight: float = 1.0,
    task_loss: Callable[[Any, Any], Tensor] | None = None,
    logits: Callable[[Any], Tensor] | None = None,
    example_inputs: Any = None,
) -> Distillation:
    """Return a loss with which ``student`` learns from ``teacher``, for your own training loop.

        loss = alpha T^2 KL(softmax(t / T) || softmax(s / T)) + (1 - alpha) task(s, targets)
               + hint_weight sum of mean((r(student's value) - teacher's value)^2) over the hints

    (Hinton et al., Distilling the Knowledge in a Neural Network, arXiv:1503.02531, section 2; Romero et al., FitNets:
    Hints for Thin Deep Nets, ICLR 2015, section 2.2, with the mean in the place of half the sum.)

        d = fxq.distill(student, teacher, hints={"layer2": "layer2"}, example_inputs=x)
        optimiser = torch.optim.SGD([*student.parameters(), *d.parameters()], lr=0.01)
        for x, y in loader:
            optimiser.zero_grad()
            d(x, y).backward()
            optimiser.step()

    Args:
        student: what trains, in the mode that you set: a module, a graph that fxq pruned, one prepared for QAT.
        teacher: runs in eval mode and without gradients; it and its mode stay as they are.
        temperature: T, positive.
        alpha: weight of the teacher's soft targets, 0 to 1.
        hints: pairs of values that should agree: a dict from names in the student to names in the teacher, pairs, or
            names that both have. A name is a module path, or a node's name in a graph module; see
            :class:`fxq.compression.features.Features`. Where one dimension, the first behind the batch or the last,
            differs, a learnable 1x1 convolution maps the student's value to the teacher's width.
        hint_weight: weight of the hints.
        task_loss: a function of the student's output and the targets; cross-entropy of class indices where None.
        logits: picks the logits, (batch, classes, ...), out of an output of either network; None where the output is
            the logits.
        example_inputs: inputs on which both networks run once, in eval mode, to see the widths at the hints; needed
            where these differ.

    Raises:
        InputError: an option is out of range, a hint names nothing, its values do not fit together, or the student
            shares tensors with the teacher.
    """
    return Distillation(
        student, teacher, temperature=temperature, alpha=alpha, hints=hints, hint_weight=hint_weight,
        task_loss=task_loss, logits=logits, example_inputs=example_inputs,
    )  # fmt: skip


def _check_options(temperature: float, alpha: float, hint_weight: float) -> None:
    checks: tuple[tuple[str, float, Callable[[float], bool], str], ...] = (
        ("temperature", temperature, lambda v: 0.0 < v < float("inf"), "positive"),
        ("alpha", alpha, lambda v: 0.0 <= v <= 1.0, "between 0 and 1"),
        ("hint_weight", hint_weight, lambda v: 0.0 <= v < float("inf"), "0 or positive"),
    )
    for name, value, fits, wanted in checks:
        if not isinstance(value, int | float) or not fits(value):
            raise InputError(f"{name} is {value!r}", where="distill", fix=f"give a finite number that is {wanted}")


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raise InputError where training the student would change the teacher."""
    if student is teacher:
        raise InputError("student and teacher are one module", where="distill", fix="give copy.deepcopy(model)")
    theirs = {id(t): name for name, t in (*teacher.named_parameters(), *teacher.named_buffers())}
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        if id(tensor) in theirs:
            raise InputError(f"student and teacher share the tensor `{name}`", where="distill",
                             why="training the student would change the teacher",
                             fix="give copy.deepcopy(teacher) as the teacher")  # fmt: skip


def _pairs(hints: Hints | None) -> tuple[tuple[str, str], ...]:
    if hints is None:
        return ()
    if isinstance(hints, str):
        return ((hints, hints),)
    pairs = []
    for hint in hints.items() if isinstance(hints, Mapping) else hints:
        pair = (hint, hint) if isinstance(hint, str) else tuple(hint)
        if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise InputError(f"a hint is {hint!r}", where="distill",
                             fix="give {'student name': 'teacher name'}, pairs, or names that both have")  # fmt: skip
        pairs.append(pair)
    return tuple(pairs)


def _bind(features: Features, batch_inputs: Any) -> ModelInputs:
    inputs = normalise_inputs(features.network, batch_inputs)
    if inputs is None:
        raise InputError("there are no inputs", where="distill",
                         fix="give batch_inputs, or both student_outputs and teacher_outputs")  # fmt: skip
    return inputs


def _rows(logits: Tensor) -> Tensor:
    """(batch, classes, ...) -> (batch and positions, classes) in float32 at least."""
    rows = logits.movedim(1, -1).flatten(0, -2)
    return rows if rows.dtype is torch.float64 else rows.float()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Run ``network`` in eval mode, and give every module its own mode back."""
    training = [module for module in network.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
