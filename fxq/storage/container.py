"""The safetensors container: https://github.com/huggingface/safetensors#format, read and written with care.

A file is 8 bytes, the little-endian length N of the header; N bytes of JSON, ``{"__metadata__": {...}, name: {"dtype",
"shape", "data_offsets": [begin, end]}, ...}``; and the data, whose entries follow one another without holes. The
``safetensors`` library writes it. Reading is done here: the library tells no name that stands twice, and it knows
nothing of the checksum, the BLAKE2b of the whole file with 64 zeros in the place of the checksum itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fxq.errors import InputError
from fxq.storage.bits import Bytes, Unsigned
from fxq.storage.checks import array, fields, integer, mapping, parse_json, refuse, text
from fxq.storage.dtypes import WIDTHS

CHECKSUM = "blake2b"
_NO_CHECKSUM = "0" * 64
_MAX_HEADER = 100_000_000  # the library's own limit
_BLOCK = 1 << 20


class Entry(NamedTuple):
    """One tensor of the file: safetensors' dtype code, shape, and where its bytes are."""

    code: str
    shape: tuple[int, ...]
    begin: int
    end: int


class StoredFile:
    """An open file whose header has been checked."""

    def __init__(self, file: io.BufferedReader, entries: dict[str, Entry], metadata: dict[str, str]) -> None:
        self._file = file
        self.entries = entries
        self.metadata = metadata

    def read(self, name: str, out: Unsigned) -> None:
        """Fill ``out`` with the bytes of the entry ``name``, which are as many.

        Raises:
            StorageError: the file has become shorter.
        """
        entry = self.entries[name]
        self._file.seek(entry.begin)
        if self._file.readinto(out.data) != entry.end - entry.begin:
            refuse("the file has become shorter", f"entry {name:.200}")

    def bytes_of(self, name: str) -> Bytes:
        """Return the bytes of the entry ``name``."""
        out = np.empty(self.entries[name].end - self.entries[name].begin, np.uint8)
        self.read(name, out)
        return out


def as_path(path: str | os.PathLike[str]) -> Path:
    """Return a file's path.

    Raises:
        InputError: ``path`` is none.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path) or "\0" in str(path):
        raise InputError(f"{path!r} is not the path of a file", fix="give a string or a pathlib.Path")
    return Path(path)


@contextlib.contextmanager
def open_stored(path: Path) -> Iterator[StoredFile]:
    """Open a file, check its header and its checksum.

    Raises:
        InputError: it cannot be opened.
        StorageError: it is no safetensors file, or not as it was written.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError("the file cannot be opened", where=str(path), why=error.strerror or str(error)) from error
    with file:
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        entries, metadata = _parse_header(header, size)
        _verify(file, header, metadata)
        yield StoredFile(file, entries, metadata)


def _read_header(file: BinaryIO, size: int) -> bytes:
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or not 2 <= length <= min(size - 8, _MAX_HEADER):
        refuse("this is no safetensors file: it has no header", "the first 8 bytes")
    header = file.read(length)
    if len(header) != length or not header.startswith(b"{"):
        refuse("this is no safetensors file: its header is not JSON", "the header")
    return header


def _parse_header(header: bytes, size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    parsed = dict(mapping(parse_json(header, "the header"), "the header"))
    metadata = mapping(parsed.pop("__metadata__", {}), "the header's metadata")
    for value in metadata.values():
        text(value, "the header's metadata")
    start = 8 + len(header)
    entries = {name: _parse_entry(name, value, start) for name, value in parsed.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            refuse("entries overlap, or there is a hole between them", f"entry {name:.200}")
        position = entry.end
    if position != size:
        refuse(f"the entries end at byte {position}, the file at {size}", "the header")
    return entries, metadata


def _parse_entry(name: str, value: object, start: int) -> Entry:
    where = f"entry {name:.200}"
    known = fields(value, where, "dtype shape data_offsets")
    code = text(known["dtype"], where)
    if code not in WIDTHS:
        refuse(f"the unknown dtype {code!r:.60}", where)
    nbytes = WIDTHS[code]
    shape = tuple(integer(n, where) for n in array(known["shape"], where))
    for n in shape:
        nbytes = min(nbytes * n, 2**63)
    offsets = [integer(n, where) for n in array(known["data_offsets"], where)]
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes or nbytes >= 2**63:
        refuse("the shape does not fit the number of bytes", where)
    return Entry(code, shape, start + offsets[0], start + offsets[1])


def _verify(file: BinaryIO, header: bytes, metadata: Mapping[str, str]) -> None:
    written = metadata.get(CHECKSUM, "")
    if len(written) != len(_NO_CHECKSUM) or header.count(_field(written)) != 1:
        refuse("this safetensors file was not written by fxq.save: it has no checksum", "the header")
    if _digest(file, header.replace(_field(written), _field(_NO_CHECKSUM))) != written:
        refuse("the file is not as it was written: its checksum differs")


def _field(checksum: str) -> bytes:
    return f'"{CHECKSUM}":"{checksum}"'.encode()


def _digest(file: BinaryIO, header: bytes) -> str:
    """The checksum of a file whose position is behind its header."""
    digest = hashlib.blake2b(len(header).to_bytes(8, "little") + header, digest_size=32)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new, empty file beside ``path``, which takes its place at the end, unless an error comes between.

    Raises:
        InputError: there is no such folder, it cannot be written, or ``path`` is a folder, a pipe or a device.
    """
    path = Path(os.path.realpath(path))
    if os.path.isdir(path):
        raise InputError("there is a folder of this name", where=str(path), fix="give the path of a file")
    if os.path.exists(path) and not os.path.isfile(path):  # os.replace would put the file in the place of /dev/null
        raise InputError("what has this name is not a file", where=str(path), fix="give the path of a file")
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = os.fstat(
            handle
        ).st_mode  # as a new file of this process gets it; the library makes its own, for us alone
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        try:
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode if os.path.exists(path) else mode))
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError("the file cannot be written", where=str(path), why=error.strerror or str(error),
                      fix="give a path in a folder that exists and may be written")  # fmt: skip


def write_stored(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file with its checksum, and wait until it is on the disk.

    Raises:
        InputError: the disk is full, or fails.
    """
    try:
        save_file(dict(tensors), path, metadata={**metadata, CHECKSUM: _NO_CHECKSUM})
        with path.open("r+b") as file:
            header = _in_order(file.read(int.from_bytes(file.read(8), "little")))
            checksum = _digest(file, header)
            file.seek(8)
            file.write(header.replace(_field(_NO_CHECKSUM), _field(checksum)))
            file.flush()
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        raise InputError("the file cannot be written", where=str(path.parent), why=str(error)) from error


def _in_order(header: bytes) -> bytes:
    """Return the header with its metadata sorted: the library writes that in another order each time."""
    parsed = json.loads(header)
    metadata = dict(sorted(parsed.pop("__metadata__").items()))
    text = json.dumps({"__metadata__": metadata, **parsed}, separators=(",", ":"), ensure_ascii=False)
    sorted_header = text.encode().ljust(len(header))
    return sorted_header if len(sorted_header) == len(header) else header


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a power failure, where folders can be opened at all."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
