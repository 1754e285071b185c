"""Prepare every peer on one network, compare its outputs with float, and time all of them in one interleaved run."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from benchmarks.peers.peer import Peer, Prepared, rebatch
from fxq.analysis.timing import Row, interleave, summarise


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, an input of the batch size to time, and the images to calibrate and compare on."""

    name: str
    model: nn.Module
    example: Tensor
    calibration: Sequence[Tensor]
    evaluation: Sequence[Tensor]


@dataclass(frozen=True)
class Entry:
    """One peer's result; ``failure`` says why there is none.

    ``sqnr_db`` is the signal-to-quantisation-noise ratio of its logits against float eager's, infinite where they are
    identical; ``agreement`` the share of images on which both name the same class first.
    """

    peer: str
    title: str
    row: Row | None = None
    sqnr_db: float = math.nan
    agreement: float = math.nan
    size_bytes: int | None = None
    prepare_s: float = math.nan
    failure: str | None = None


@dataclass(frozen=True)
class Run:
    """The entries of one network at one batch size."""

    model: str
    shape: tuple[int, ...]
    threads: int
    entries: tuple[Entry, ...]


def measure(
    subject: Subject, baseline: Peer, peers: Sequence[Peer], budget_s: float, say: Callable[[str], None]
) -> Run:
    """Measure ``peers`` beside ``baseline`` on ``subject`` for about ``budget_s`` seconds."""
    entries, calls = prepare(subject, (baseline, *peers), say)
    say(f"{subject.name}, batch {len(subject.example)}: timing {len(calls)} of {len(entries)}")
    with torch.inference_mode():
        rows = {row.name: row for row in summarise(interleave(calls, budget_s=budget_s))} if calls else {}
    timed = tuple(replace(entry, row=rows.get(entry.peer)) for entry in entries)
    return Run(subject.name, tuple(subject.example.shape), torch.get_num_threads(), timed)


def prepare(
    subject: Subject, peers: Sequence[Peer], say: Callable[[str], None]
) -> tuple[list[Entry], dict[str, Callable[[], object]]]:
    """Return an entry for each peer, not timed yet, and a call on the example for each that can be timed.

    A peer that is not installed, or fails while it is prepared or runs the evaluation images, gets an entry with the
    reason; the others go on.
    """
    images = rebatch(subject.evaluation, len(subject.example))
    with torch.inference_mode():
        reference = torch.cat([subject.model(batch) for batch in images])
    calls: dict[str, Callable[[], object]] = {}
    entries: list[Entry] = []
    for peer in peers:
        say(f"{subject.name}, batch {len(subject.example)}: preparing {peer.title}")
        entry, prepared = _prepare(peer, subject, images, reference)
        entries.append(entry)
        if prepared is not None:
            calls[peer.name] = _bind(prepared, subject.example)
    return entries, calls


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Return ``10 log10(sum(reference ** 2) / sum((reference - output) ** 2))`` in decibels."""
    signal = reference.double().square().sum()
    noise = (reference.double() - output.double()).square().sum()
    if noise == 0:
        return math.inf
    return float(10 * torch.log10(signal / noise))


def _prepare(
    peer: Peer, subject: Subject, images: Sequence[Tensor], reference: Tensor
) -> tuple[Entry, Prepared | None]:
    entry = Entry(peer.name, peer.title)
    reason = peer.available()
    if reason is not None:
        return replace(entry, failure=reason), None
    start = time.perf_counter()
    try:
        with quiet():
            prepared = peer.prepare(copy.deepcopy(subject.model), subject.example, subject.calibration)
        spent = time.perf_counter() - start
        with torch.inference_mode():
            output = torch.cat([prepared.call(batch).clone() for batch in images])
    except Exception as error:  # a peer's failure is a result: it belongs in the table
        return replace(entry, failure=f"{type(error).__name__}: {error}"), None
    if output.shape != reference.shape:
        return replace(entry, failure=f"outputs are {list(output.shape)}, not {list(reference.shape)}"), None
    entry = replace(
        entry,
        sqnr_db=sqnr_db(reference, output),
        agreement=float((output.argmax(-1) == reference.argmax(-1)).float().mean()),
        size_bytes=prepared.size_bytes,
        prepare_s=spent,
    )
    return entry, prepared


def _bind(prepared: Prepared, example: Tensor) -> Callable[[], object]:
    own = example.clone()
    return lambda: prepared.call(own)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the peers print and log while they convert."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def select(peers: Mapping[str, Peer], names: Sequence[str]) -> list[Peer]:
    """Return the peers called ``names``, each once, in that order."""
    return [peers[name] for name in dict.fromkeys(names)]
