"""Files that fxq.save would never write: a saved file taken apart, edited, and put together with a good checksum."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as serialise
from torch import Tensor

from fxq.storage.container import open_stored
from fxq.storage.document import GRAPH, REPORT, pack_document, to_json, unpack_document

_DTYPES = {"F32": torch.float32, "U8": torch.uint8, "I8": torch.int8, "I64": torch.int64, "BOOL": torch.bool}


@dataclass
class Forged:
    """The parts of a file; edit them, then ``write``."""

    graph: Any
    report: Any
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> Forged:
        with open_stored(path) as file:
            tensors = {}
            for name, entry in file.entries.items():
                if name not in (GRAPH, REPORT):
                    raw = file.bytes_of(name)
                    flat = torch.from_numpy(raw).view(_DTYPES[entry.code]) if raw.size else torch.empty(0)
                    tensors[name] = flat.reshape(entry.shape)
            graph = unpack_document(file.bytes_of(GRAPH), GRAPH)
            report = unpack_document(file.bytes_of(REPORT), REPORT) if REPORT in file.entries else None
            metadata = {k: v for k, v in file.metadata.items() if k != "blake2b"}
        return cls(graph, report, tensors, metadata)

    def write(self, path: Path) -> Path:
        entries = {GRAPH: pack_document(to_json(self.graph)), **self.tensors}
        if self.report is not None:
            entries[REPORT] = pack_document(to_json(self.report))
        return self.write_entries(path, entries)

    def write_text(self, path: Path, text: str) -> Path:
        """Write ``text`` as the graph's JSON, whatever it is."""
        packed = np.frombuffer(zlib.compress(text.encode()), np.uint8).copy()
        return self.write_entries(path, {GRAPH: torch.from_numpy(packed), **self.tensors})

    def write_entries(self, path: Path, entries: dict[str, Tensor]) -> Path:
        raw = serialise(entries, metadata={**self.metadata, "blake2b": "@" * 64})
        length = int.from_bytes(raw[:8], "little")
        path.write_bytes(_signed(raw[8 : 8 + length], raw[8 + length :]))
        return path


def with_header(path: Path, header: str, data: bytes = b"") -> Path:
    """Write a safetensors file of this header, in which 64 times ``@`` stand for the right checksum."""
    path.write_bytes(_signed(header.encode(), data))
    return path


def _signed(header: bytes, data: bytes) -> bytes:
    length, blank = len(header).to_bytes(8, "little"), header.replace(b"@" * 64, b"0" * 64)
    digest = hashlib.blake2b(length + blank + data, digest_size=32).hexdigest()
    return length + header.replace(b"@" * 64, digest.encode()) + data
