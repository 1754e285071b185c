from __future__ import annotations

from importlib.util import find_spec

import pytest

from benchmarks.coverage import ARCHITECTURES, Covered, cover, table
from benchmarks.torchvision_shim import import_torchvision


def test_rows() -> None:
    rows = [Covered("a", 12, 13, 2, 40.26), Covered("b", failure="it cannot be traced")]
    made = table(rows)
    cells = [list(column.cells) for column in made.columns]
    assert cells == [["a", "b"], ["12 of 13", ""], ["2", ""], ["40.3 dB", ""], ["", "it cannot be traced"]]


@pytest.mark.parametrize("name", ["DistilBERT", "GPT-2"])
def test_every_layer_becomes_int8(name: str) -> None:
    if any(find_spec(module) is None for module in ("torchvision", "transformers")):
        pytest.skip("torchvision or transformers is not installed")
    import_torchvision()  # which transformers imports
    covered = cover(name, ARCHITECTURES[name])
    assert not covered.failure
    assert covered.int8 == covered.layers
    assert covered.sqnr_db > 25
