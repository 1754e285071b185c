"""The networks that speed and memory are measured on."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import fxq
from benchmarks.networks.bert import Bert, bert_base, randomised, token_batches
from benchmarks.subjects import subject
from fxq.engine.form import segments
from fxq.engine.library import unavailable_reason


def small() -> Bert:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(Bert(width=48, depth=2, heads=4, tokens=16, vocabulary=50)).eval()


def test_bert_base_has_as_many_weights_as_devlin_et_al_state() -> None:
    """85 M in the blocks, 23.4 M in the word embeddings, 0.6 M in the pooler."""
    model = bert_base()
    assert sum(p.numel() for p in model.blocks.parameters()) == 85_054_464
    assert model.words.weight.numel() == 30522 * 768
    assert not model.training


def test_tokens_are_seeded_and_some_are_frequent() -> None:
    (ids,), (again,) = token_batches(1, 64, seed=3), token_batches(1, 64, seed=3)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, token_batches(1, 64, seed=4)[0])
    assert (ids.shape, ids.dtype) == ((64, 128), torch.int64)
    assert 0 <= int(ids.min()) < int(ids.max()) < 30522
    assert (ids < 3052).float().mean() > 0.4


def test_a_bert_has_no_linear_left_in_float() -> None:
    model, data = small(), token_batches(4, 4, seed=1, tokens=16, vocabulary=50)
    gm = fxq.compile(model, data[0], calibration=data, recipe="int8", target="reference", progress=False)
    assert not [m for m in gm.modules() if isinstance(m, torch.nn.Linear)]
    with torch.no_grad():
        wanted, found = model(data[0]), gm(data[0])
    assert 10 * torch.log10(wanted.square().sum() / (wanted - found).square().sum()) > 25


@pytest.mark.skipif(unavailable_reason() is not None, reason="the engine was not built")
def test_a_bert_is_one_segment_behind_its_embeddings() -> None:
    data = token_batches(4, 4, seed=1, tokens=16, vocabulary=50)
    gm = fxq.compile(small(), data[0], calibration=data, recipe="int8", target="native", progress=False)
    assert len(segments(gm)) == 1
    with torch.no_grad():
        assert torch.equal(gm(data[1])[2:3], gm(data[1][2:3]))


def test_subjects_by_name() -> None:
    found = subject("bert_base", batch=3)
    assert found.example.shape == (3, 128)
    assert [batch.shape for batch in found.evaluation] == [(8, 128)] * 4
    if importlib.util.find_spec("torchvision") is not None:
        assert subject("squeezenet1_1", batch=2).example.shape == (2, 3, 224, 224)
