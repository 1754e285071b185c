"""The two JSON documents of a file: the graph with its modules, and the report. Both are compressed.

They are entries of bytes and not part of the header's metadata, because a header is text: JSON inside a JSON string has
every quote escaped, nothing could be compressed, and a report, which holds the graph before and after each pass, would
often be larger than int8 weights. The header keeps what a reader wants without the rest: versions and the checksum.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from fxq.ir.snapshot import NodeRecord
from fxq.manager.report import Report
from fxq.storage.bits import Bytes
from fxq.storage.checks import fields, parse_json, refuse
from fxq.storage.records import RecordReader, RecordWriter
from fxq.storage.sections import decode_sections, encode_sections

#: The names of the entries. No tensor has a name with a colon before its last part.
GRAPH: Final = "fxq:graph"
REPORT: Final = "fxq:report"
#: What is unpacked is at most this many times as large as what is in the file (and JSON takes memory in proportion).
MAX_RATIO: Final = 100
_SLACK: Final = 1 << 16


def to_json(value: Any) -> bytes:
    """Return ``value`` as JSON.

    Raises:
        TypeError: it holds something that JSON does not.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def pack_document(raw: bytes) -> Tensor:
    """Return JSON as a tensor of compressed bytes."""
    packed = zlib.compress(raw, 9)
    if len(raw) > _limit(len(packed)):  # repeats more often than is believed of a file: do not compress
        packed = zlib.compress(raw, 0)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def unpack_document(packed: Bytes, name: str) -> Any:
    """Return the JSON in a document.

    Raises:
        StorageError: it cannot be unpacked, is much larger than it says, or is no JSON.
    """
    unpacker = zlib.decompressobj()
    limit = _limit(packed.nbytes)
    try:
        raw = unpacker.decompress(packed.tobytes(), limit + 1)
    except zlib.error as error:
        refuse("a document cannot be unpacked", name, error)
    if len(raw) > limit or not unpacker.eof or unpacker.unused_data:
        refuse("a document does not end where it should", name)
    return parse_json(raw, name)


def encode_report(report: Report) -> dict[str, Any]:
    """Return a report as JSON: each record of a node once, however many snapshots hold it."""
    writer = RecordWriter(NodeRecord)
    encoded = writer.encode(replace(report, sections=[]))
    return {"nodes": writer.table, "report": encoded, "sections": encode_sections(report.sections)}


def decode_report(document: Any) -> Report:
    """Return the report.

    Raises:
        StorageError: it is none.
    """
    known = fields(document, "the report", "nodes report sections")
    report: Report = RecordReader(NodeRecord, known["nodes"]).decode(Report, known["report"])
    if report.sections:
        refuse("sections stand in two places", "the report")
    report.sections = decode_sections(known["sections"])
    return report


def _limit(packed: int) -> int:
    return MAX_RATIO * packed + _SLACK
