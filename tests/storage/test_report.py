"""The report in a file: the same tables, also those of pruning, and of sections that nobody told the format about."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import RenderableType
from rich.text import Text

import fxq
from fxq.errors import InputError, StorageError
from fxq.pruner.api import plan_of, prune, prune_report
from fxq.storage import load, save
from fxq.storage.document import decode_report, encode_report
from tests.storage.models import images, residual


class Own:
    """A section of a user's."""

    name = "own"

    def to_dict(self) -> dict[str, Any]:
        return {"a": (1, 2), "b": math.nan, "c": torch.float32}

    def __rich__(self) -> RenderableType:
        return Text("own section\n  two lines")


def test_a_pruned_module_keeps_its_report_and_its_plan(tmp_path: Path) -> None:
    pruned = prune(residual(), images(), ratio=0.5)
    save(pruned, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert prune_report(loaded) == prune_report(pruned)
    assert str(fxq.report(loaded)) == str(fxq.report(pruned))
    assert fxq.report(loaded).to_dict() == fxq.report(pruned).to_dict()
    assert torch.equal(loaded(images()), pruned(images()))
    again = prune(residual(), images(), plan=plan_of(loaded))
    assert torch.equal(again(images()), pruned(images()))


def test_pruned_and_quantised(tmp_path: Path) -> None:
    pruned = prune(residual(), images(), ratio=0.5)
    gm = fxq.compile(pruned, images(), calibration=[images()], target="reference")
    save(gm, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert torch.equal(loaded(images()), gm(images()))
    assert loaded.stem.weight.shape == gm.stem.weight.shape


def test_a_section_of_an_unknown_class_keeps_what_it_shows() -> None:
    report = fxq.Report(sections=[Own()], notes=["one"])
    found = decode_report(json.loads(json.dumps(encode_report(report))))
    assert str(found) == str(report)
    assert found.to_dict()["sections"] == {"own": {"a": [1, 2], "b": None, "c": "torch.float32"}}
    assert str(decode_report(encode_report(found))) == str(report)  # what was shown is shown again


OTHERS = [
    5,
    {},
    {"class": "Own", "section": {}},
    {"class": "PruneReport", "section": {"goal": 1}},
    {"class": "shown", "section": {"name": "a", "data": [], "text": ""}},
]


@pytest.mark.parametrize("section", OTHERS, ids=repr)
def test_other_sections_are_refused(section: Any) -> None:
    with pytest.raises(StorageError):
        decode_report({**json.loads(json.dumps(encode_report(fxq.Report()))), "sections": [section]})


@pytest.mark.parametrize("note", [object(), 5, "\ud800"], ids=["object", "number", "surrogate"])
def test_a_report_that_cannot_come_back_is_refused(note: Any, tmp_path: Path) -> None:
    gm = fxq.compile(residual(), images())
    fxq.report(gm).notes.append(note)
    with pytest.raises(InputError, match=r"report of this graph module cannot be saved(.|\n)*leaves it out"):
        save(gm, tmp_path / "m")
    gm.meta.pop("fxq_report")
    save(gm, tmp_path / "m")
    assert "fxq_report" not in load(tmp_path / "m").meta
