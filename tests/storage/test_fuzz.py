"""Thousands of damaged files: each is refused with a StorageError, or gives a module that runs."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxq
from fxq.errors import StorageError
from fxq.storage import load, save
from tests.storage.forge import Forged

#: What the operations of an edited graph may raise: it is another program, and torch checks its arguments. No crash, no
#: hang, nothing of ours.
OF_THE_GRAPH = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError, AssertionError,
                KeyError, ZeroDivisionError, OverflowError, fxq.FxqError)  # fmt: skip
VALUES = [None, True, False, 0, 1, -1, 2, 3, 7, 255, 256, 10**6, 2**31, 2**62, -(2**63), 2**80, 0.0, -0.0, 0.5, 1e308,
          "", "x", "__class__", "../..", "torch.relu", "operator.add", "fxq.nn.QConv2d", "graph", [], {}, [[]], [1, 2],
          {"node": 0}, {"node": 99}, {"tuple": [1, 2]}, {"float": "nan"}, {"float": "inf"}, {"slice": [0, None, None]},
          {"dtype": "int8"}, {"size": [1]}, {"dict": [[1, 2]]}, {"ellipsis": None}]  # fmt: skip


class Small(nn.Module):
    """Few nodes, and every coding of a tensor that a small one can have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)
        self.register_buffer("shared", (torch.arange(800) % 5).float())
        self.register_buffer("sparse", torch.where(torch.arange(2000) % 50 == 0, torch.arange(2000.0).sqrt(), 0.0))
        self.register_buffer("signed", torch.randn(900) * (torch.arange(900) % 3 == 1))

    def forward(self, x: Tensor, gain: float = 2.0) -> Tensor:
        b = x.shape[0]
        y = torch.relu(self.conv(x)).view(b, 8, -1).mean(2)
        return (
            self.fc(y + (self.shared * x.mean())[:8]) * gain
            + (self.sparse * x.mean()).sum()
            + (self.signed * x.mean())[-1]
        )


def images() -> Tensor:
    return torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0))


def make(stage: str, path: Path) -> Path:
    torch.manual_seed(0)
    model = Small().eval()
    if stage == "float":
        save(fxq.trace(model, images()), path)
    else:
        save(fxq.compile(model, images(), calibration=[images()], target="reference"), path)
    return path


@pytest.fixture(scope="module", params=["float", "int8"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tmp_path_factory.mktemp("fuzz") / "m.fxq")


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def edit(document: Any, rng: random.Random) -> None:
    """Change one place in a JSON value."""
    every = list(places(document))
    container, key = rng.choice(every)
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(rng.choice(container)))
    elif kind == 2:
        other, name = rng.choice(every)
        container[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(container[key])
    elif kind == 3 and type(container[key]) is int:
        container[key] += rng.choice([-1, 1, 2, 256, 2**40])
    elif kind == 4 and isinstance(container, dict):
        container[rng.choice(["x", "args", "__class__", "buffers", "node"])] = copy.deepcopy(rng.choice(VALUES))
    else:
        container[key] = copy.deepcopy(rng.choice(VALUES))


def resize(forged: Forged, rng: random.Random) -> None:
    """Change a size, and most places that go with it: a tensor, its entry, settings, an argument, the example."""
    tensors = [t for t in forged.graph["tensors"] if "positions" not in t and t["shape"]]
    described = rng.choice(tensors)
    at = rng.randrange(len(described["shape"]))
    old = described["shape"][at]
    new = max(0, rng.choice([old - 1, old + 1, 2 * old, old // 2, 1, 0, 5]))
    if rng.random() < 0.8:
        described["shape"][at] = new
        data = forged.tensors[described["name"]]
        forged.tensors[described["name"]] = torch.ones(described["shape"], dtype=data.dtype)
    parts = [m["settings"] for m in forged.graph["modules"] if "settings" in m]
    parts += [n["args"] for n in forged.graph["nodes"] if "args" in n] + [forged.graph["examples"]]
    for container, key in list(places(parts)):
        if type(container[key]) is int and container[key] == old and key != "node" and rng.random() < 0.4:
            container[key] = new
    for other in tensors:
        if other is not described and old in other["shape"] and rng.random() < 0.4:
            other["shape"] = [new if n == old else n for n in other["shape"]]
            data = forged.tensors[other["name"]]
            forged.tensors[other["name"]] = torch.ones(other["shape"], dtype=data.dtype)


def outcome(path: Path, with_report: bool = False) -> str:
    """Load a file and run what comes out of it, in memory that a test limits."""
    try:
        gm = load(path)
    except StorageError as error:
        return "out of memory" if "not enough memory" in str(error) else "refused"
    if with_report:
        str(fxq.report(gm))
    try:
        with torch.no_grad():
            gm(images())
    except OF_THE_GRAPH:
        return "loaded, and its operations refuse their arguments"
    return "ran"


def test_every_bit_counts(original: Path, tmp_path: Path) -> None:
    raw, path = original.read_bytes(), tmp_path / "m"
    rng = random.Random(0)
    for _ in range(1000):
        damaged = bytearray(raw)
        for _ in range(rng.choice([1, 1, 1, 2, 20])):
            place = rng.randrange(len(raw)) if rng.random() < 0.5 else rng.randrange(min(len(raw), 3000))
            damaged[place] ^= 1 << rng.randrange(8)
        if damaged != raw:
            path.write_bytes(damaged)
            with pytest.raises(StorageError):
                load(path)


def test_every_byte_counts(original: Path, tmp_path: Path) -> None:
    raw, path = original.read_bytes(), tmp_path / "m"
    rng = random.Random(0)
    for length in [*range(40), *(rng.randrange(len(raw)) for _ in range(300)), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises(StorageError):
            load(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(StorageError):
        load(path)


def test_damaged_tensors_with_a_good_checksum(original: Path, tmp_path: Path) -> None:
    forged = Forged.read(original)
    forged.report = None
    rng = random.Random(1)
    outcomes = set()
    coded = [name for name in forged.tensors if ":" in name]
    assert {name.rpartition(":")[2] for name in coded} >= {"bitmap", "codes", "palette", "signs", "values"}
    for _ in range(300):
        damaged = copy.deepcopy(forged)
        name = rng.choice(coded)
        data = damaged.tensors[name].contiguous()
        flat = data.view(-1).view(torch.uint8)
        if rng.random() < 0.3:
            damaged.tensors[name] = data[: rng.randrange(len(data))].clone()
        else:
            flat[rng.randrange(len(flat))] ^= 1 << rng.randrange(8)
        outcomes.add(outcome(damaged.write(tmp_path / "m")))
    assert outcomes == {"refused", "ran"}


_LIMITED = """
import random, resource, sys
from collections import Counter
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.storage.forge import Forged
from tests.storage.test_fuzz import edit, make, outcome, resize
import copy

folder, stage, count, sizes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "sizes"
forged = Forged.read(make(stage, folder / "original"))
outcome(folder / "original")  # everything is imported before memory is limited
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
outcomes = Counter()
for seed in range(count):
    rng = random.Random(seed)
    edited = copy.copy(forged)
    in_report = not sizes and forged.report is not None and rng.random() < 0.1
    if sizes:
        edited = copy.deepcopy(forged)
        edited.report = None
    elif in_report:
        edited.report = copy.deepcopy(forged.report)
    else:
        edited.graph, edited.report = copy.deepcopy(forged.graph), None
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        resize(edited, rng) if sizes else edit(edited.report if in_report else edited.graph, rng)
    try:
        outcomes[outcome(edited.write(folder / "edited"), in_report)] += 1
    except Exception:
        print("seed", seed, file=sys.stderr)
        raise
print(dict(outcomes))
"""


@pytest.mark.parametrize("kind", ["values", "sizes"])
@pytest.mark.parametrize("stage", ["float", "int8"])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory through /proc and setrlimit")
def test_edited_json_with_a_good_checksum_in_little_memory(stage: str, kind: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LIMITED, str(tmp_path), stage, "1000", kind]
    root = Path(fxq.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'refused'" in done.stdout
    assert "'ran'" in done.stdout
    assert "out of memory" not in done.stdout
    if kind == "sizes":
        assert "refuse their arguments" not in done.stdout
