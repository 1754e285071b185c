"""What stands in a box, and in the tooltip over it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from fxq.ir.snapshot import NodeRecord
from fxq.ir.text import node_text
from fxq.visualize.changes import Changes
from fxq.visualize.escape import attribute, markup, shorten
from fxq.visualize.fold import Folding, expression
from fxq.visualize.palette import INK, MARKS, MUTED
from fxq.visualize.settings import settings

_WIDEST: Final = 38
_LONGEST: Final = 160
_SEPARATOR: Final = " \u00b7 "


def label(node: NodeRecord, cluster: str, folding: Folding, changes: Changes) -> str:
    """Return the text of a box as DOT's HTML-like markup: name, kind, settings, constants, result, notes."""
    mark = MARKS.get(changes.of(node) or "")
    glyph = f'<font color="{mark.colour}" point-size="14"><b>{mark.glyph}</b></font> ' if mark else ""
    name = shorten(short_name(node, cluster), _WIDEST)
    lines = [f"{glyph}<b>{markup(name)}</b>"]
    lines += [_line(text, 10, INK) for text in _body(node, name, folding)]
    lines += [_line(text, 9, MUTED) for text in _constants(node, folding, changes)]
    if node.value:
        lines.append(_line(shorten(node.value, _LONGEST), 9, MUTED))
    if mark:
        notes = (w for n in changes.notes.get(node.id, ()) for w in _wrap(n))
        lines += [_line(text, 9, mark.colour) for text in notes]
    return "<" + "<br/>".join(lines) + ">"


def short_name(node: NodeRecord, cluster: str) -> str:
    """Return the node's name without the module path that its cluster already says."""
    prefix = cluster.replace(".", "_") + "_"
    short = node.name.removeprefix(prefix) if cluster else node.name
    return short if short and not short[0].isdigit() else node.name


def tooltip(node: NodeRecord, changes: Changes) -> str:
    """Return what the pointer shows: the whole line of graph, the module, the source line, the rewrites so far."""
    lines = [node_text(node)]
    if node.module_path:
        lines.append(f"module {node.module_path}")
    if node.source:
        lines.append(f"source {node.source}")
    lines += [f"made by {changes.origin_text(o)}" for o in node.origins]
    return attribute("\n".join(lines))


def _body(node: NodeRecord, name: str, folding: Folding) -> Iterator[str]:
    kind = "input" if node.op == "placeholder" else node.kind
    if kind != name:
        yield shorten(kind, _WIDEST)
    yield from _pack([shorten(p, 2 * _WIDEST) for p in settings(node, folding)])


def _pack(phrases: list[str]) -> Iterator[str]:
    """Put as many phrases on a line as fit; a phrase longer than a line is broken."""
    line = ""
    for phrase in phrases:
        longer = f"{line}{_SEPARATOR}{phrase}" if line else phrase
        if len(longer) <= _WIDEST:
            line = longer
            continue
        if line:
            yield line
        *whole, line = _wrap(phrase) or [""]
        yield from whole
    if line:
        yield line


def _constants(node: NodeRecord, folding: Folding, changes: Changes) -> Iterator[str]:
    """Constants that the node reads; of its size arithmetic only what is marked, the rest stands in the settings."""
    for read in folding.folded_inputs(node):
        mark = MARKS.get(changes.of(read) or "")
        if mark is None and read.op != "get_attr":
            continue
        glyph = f"{mark.glyph} " if mark else ""
        yield shorten(f"{glyph}with {expression(read, folding)} {read.value}".rstrip(), 2 * _WIDEST)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDEST, break_long_words=True) if text else []


def _line(text: str, size: int, colour: str) -> str:
    return f'<font point-size="{size}" color="{colour}">{markup(text)}</font>'
