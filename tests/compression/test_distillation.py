"""Distillation: the loss against its formula, hints, and networks that stay as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxq.compression import Distillation, distill
from fxq.errors import InputError
from tests.compression.networks import Net, batch, pair


class Named(Net):
    """The same, as a dict beside something else."""

    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x), "sum": x.sum()}


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.9), (1.0, 0.5), (2.5, 0.0), (3.0, 1.0)])
def test_the_loss_is_the_formula(temperature: float, alpha: float) -> None:
    student, teacher = pair()
    student.eval()
    x, y = batch()
    s, t = student(x), teacher(x)
    p, q = (t / temperature).softmax(1), (s / temperature).softmax(1)
    divergence = (p * (p.log() - q.log())).sum() / len(x)
    picked = -s.softmax(1).log()[torch.arange(len(x)), y].mean()
    wanted = alpha * temperature**2 * divergence + (1 - alpha) * picked
    d = distill(student, teacher, temperature=temperature, alpha=alpha)
    torch.testing.assert_close(d(x, y), wanted)
    assert set(d.terms) == ({"soft"} if alpha > 0 else set()) | ({"task"} if alpha < 1 else set())
    assert not any(term.requires_grad for term in d.terms.values())
    torch.testing.assert_close(d(student_outputs=s, teacher_outputs=t, targets=y), wanted)
    torch.testing.assert_close(d(x, y, teacher_outputs=t), wanted)


def test_the_gradient_is_that_of_the_student_alone() -> None:
    student, teacher = pair()
    x, y = batch()
    twin = copy.deepcopy(student)
    torch.manual_seed(3)
    distill(student, teacher, temperature=2.0, alpha=0.7)(x, y).backward()
    torch.manual_seed(3)
    s = twin(x)
    with torch.no_grad():
        t = teacher(x)
    soft = F.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4
    (0.7 * soft + 0.3 * F.cross_entropy(s, y)).backward()
    for ours, theirs in zip(student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_stays_as_it_is(training: bool) -> None:
    student, teacher = pair()
    teacher.train(training)
    teacher.block.train(not training)
    modes = [m.training for m in teacher.modules()]
    state = copy.deepcopy(teacher.state_dict())
    d = distill(student, teacher, hints=["block"], example_inputs=batch()[0])
    d(*batch()).backward()
    assert [m.training for m in teacher.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(teacher.state_dict().values(), state.values(), strict=True))
    assert not any(m._forward_hooks for m in (*teacher.modules(), *student.modules()))
    x, y = batch()
    student.eval()
    assert torch.equal(d(x, y), d(x, y))  # the teacher's dropout is off


def test_the_student_keeps_its_mode_and_seeing_widths_leaves_no_trace() -> None:
    student, teacher = pair()
    state = copy.deepcopy(student.state_dict())
    distill(student, teacher, hints=["block"], example_inputs=batch()[0])
    assert student.training
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), state.values(), strict=True))


def test_hints_of_one_width() -> None:
    student, teacher = pair(8, 8)
    student.eval()
    x, y = batch()
    d = distill(student, teacher, hints={"stem.2": "block.2", "block": "block"}, hint_weight=0.5)
    assert not list(d.parameters())
    loss = d(x, y)
    ours, theirs = student.stem(x), teacher.stem(x)
    wanted = (ours - teacher.block(theirs)).square().mean() + (
        student.block(ours) - teacher.block(theirs)
    ).square().mean()
    torch.testing.assert_close(d.terms["hints"], wanted.detach())
    torch.testing.assert_close(loss, 0.9 * d.terms["soft"] + 0.1 * d.terms["task"] + 0.5 * wanted)


def test_hints_of_different_widths_get_a_regressor() -> None:
    student, teacher = pair(4, 8)
    student.eval()
    x, y = batch()
    d = distill(student, teacher, hints=[("block", "block"), ("head", "head")], example_inputs=x)
    weight, bias = (p.detach() for p in d.parameters())
    assert weight.shape == (8, 4)
    d(x, y).backward()
    ours, theirs = student.block(student.stem(x)), teacher.block(teacher.stem(x))
    mapped = F.conv2d(ours, weight[:, :, None, None], bias)
    wanted = (mapped - theirs).square().mean() + (student(x) - teacher(x)).square().mean()
    torch.testing.assert_close(d.terms["hints"], wanted.detach())
    assert all(p.grad is not None for p in d.parameters())
    assert student.stem[0].weight.grad is not None


def test_hints_over_the_last_dimension() -> None:
    torch.manual_seed(0)
    student, teacher = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 3))
    x = torch.randn(2, 7, 6)
    d = distill(student, teacher, alpha=1.0, hints={"0": "0"}, example_inputs=x, logits=lambda out: out.movedim(-1, 1))
    assert [tuple(p.shape) for p in d.parameters()] == [(9, 4), (9,)]
    d(x).backward()


def test_a_student_learns() -> None:
    student, teacher = pair(4, 8)
    x, _ = batch(64)
    with torch.no_grad():
        y = teacher(x).argmax(1)
    d = distill(student, teacher, hints=["block"], example_inputs=x)
    optimiser = torch.optim.Adam([*student.parameters(), *d.parameters()], lr=0.01)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = d(x, y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# -- outputs, targets, inputs --------------------------------------------------------------------------------------


def test_outputs_that_are_dicts() -> None:
    torch.manual_seed(0)
    student, teacher = Named(4).eval(), Named(8).eval()
    x, y = batch()
    d = distill(student, teacher, logits=lambda out: out["out"])
    plain = distill(nn.Identity(), nn.Linear(1, 1))
    wanted = plain(student_outputs=student(x)["out"], teacher_outputs=teacher(x)["out"], targets=y)
    torch.testing.assert_close(d(x, y), wanted)
    with pytest.raises(InputError, match="the student returns a dict with the keys 'out', 'sum'") as caught:
        distill(student, teacher)(x, y)
    assert "pass logits=fn" in str(caught.value)


def test_a_task_loss_of_your_own_sees_the_whole_output() -> None:
    torch.manual_seed(0)
    student, teacher = Named(4).eval(), Named(8).eval()
    x, _ = batch()
    d = distill(student, teacher, alpha=0.0, logits=lambda out: out["out"],
                task_loss=lambda out, wanted: (out["sum"] - wanted).abs())  # fmt: skip
    assert d(x, 3.0).item() == pytest.approx(abs(float(x.sum()) - 3.0), rel=1e-6)


def test_dense_logits_are_averaged_over_positions() -> None:
    s, t = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    d = distill(nn.Identity(), nn.Linear(1, 1), alpha=1.0)
    rows = [v.permute(0, 2, 3, 1).reshape(-1, 5) for v in (s, t)]
    torch.testing.assert_close(
        d(student_outputs=s, teacher_outputs=t), d(student_outputs=rows[0], teacher_outputs=rows[1])
    )


def test_inputs_in_the_forms_that_people_have() -> None:
    student, teacher = pair()
    student.eval()
    x, y = batch()
    d = distill(student, teacher)
    assert torch.equal(d(x, y), d((x,), y))
    assert torch.equal(d(x, y), d({"x": x}, y))


def test_half_precision_logits_are_compared_in_float32() -> None:
    s, t = torch.randn(4, 5).half(), torch.randn(4, 5).half()
    loss = distill(nn.Identity(), nn.Linear(1, 1), alpha=1.0)(student_outputs=s, teacher_outputs=t)
    assert loss.dtype == torch.float32


def test_it_moves_and_saves_as_a_module_of_its_regressors() -> None:
    student, teacher = pair()
    d = distill(student, teacher, hints=["block"], example_inputs=batch()[0])
    assert isinstance(d, Distillation)
    assert list(d.state_dict()) == ["regressors.0.mix.weight", "regressors.0.mix.bias"]
    d.double()
    assert student.head.weight.dtype == torch.float32
    assert "temperature=4, alpha=0.9, hints=1" in repr(d)


# -- errors --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": 0.0}, r"temperature is 0.0\n(.*\n)*.*positive"),
    "temperature as text": ({"temperature": "hot"}, "temperature is 'hot'"),
    "alpha": ({"alpha": 1.5}, r"alpha is 1.5\n(.*\n)*.*between 0 and 1"),
    "hint weight": ({"hint_weight": -1.0}, r"hint_weight is -1.0\n(.*\n)*.*0 or positive"),
    "a triple": ({"hints": [("a", "b", "c")]}, r"a hint is \('a', 'b', 'c'\)"),
    "a number": ({"hints": {"block": 3}}, r"a hint is \('block', 3\)"),
    "student's name": ({"hints": {"blok": "block"}}, r"student has no module or node 'blok'\n(.*\n)*.*'block'"),
    "teacher's name": ({"hints": {"block": "steam"}}, r"teacher has no module or node 'steam'\n(.*\n)*.*'stem'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        distill(*pair(), **options)


def test_student_and_teacher_must_not_share() -> None:
    student, teacher = pair(8, 8)
    with pytest.raises(InputError, match="student and teacher are one module"):
        distill(student, student)
    student.head = teacher.head
    with pytest.raises(InputError, match=r"share the tensor `head.weight`\n(.*\n)*.*copy.deepcopy"):
        distill(student, teacher)


def test_what_hints_cannot_do() -> None:
    student, teacher = pair()
    x, y = batch()
    with pytest.raises(InputError, match=r"the widths of 'block' and 'block' differ(.*\n)*.*pass example_inputs"):
        distill(student, teacher, hints=["block"])(x, y)
    with pytest.raises(InputError, match="do not fit together"):
        distill(student, teacher, hints={"block": "head"}, example_inputs=x)
    with pytest.raises(InputError, match="outputs that are known already are given beside hints"):
        distill(student, teacher, hints=["head"])(x, y, teacher_outputs=teacher(x))


def test_bad_targets_outputs_and_inputs() -> None:
    student, teacher = pair()
    x, y = batch()
    d = distill(student, teacher)
    with pytest.raises(InputError, match=r"there are no targets\n(.*\n)*.*1 - alpha = 0.1(.*\n)*.*alpha=1.0"):
        d(x)
    with pytest.raises(InputError, match=r"the targets are torch.float32, not class indices\n(.*\n)*.*task_loss=fn"):
        d(x, y.float())
    with pytest.raises(InputError, match=r"logits are \(12, 5\), the teacher's \(12, 7\)"):
        distill(student, Net(8, classes=7))(x, y)
    with pytest.raises(InputError, match="the student's logits have 1 dimensions"):
        d(student_outputs=torch.randn(5), teacher_outputs=torch.randn(5), targets=y)
    with pytest.raises(InputError, match="there are no inputs"):
        d(targets=y)
    with pytest.raises(InputError, match="do not fit the model"):
        d((x, x), y)
