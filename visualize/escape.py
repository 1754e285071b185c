"""Text on its way into DOT: whatever a model calls its parts, it arrives in the picture as it is."""

from __future__ import annotations

import html
import re
from typing import Final

# what XML 1.0 cannot hold: the SVG would not open
_ILLEGAL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
# a backslash in front of what dot's escape sequences consist of
_ESCAPES: Final = re.compile(r"\\(?=[GNETHLnlr\\]|\Z)")


def legal(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return _ILLEGAL.sub("\ufffd", text)


def markup(text: str) -> str:
    """Escape text inside an HTML-like label. ``dot`` reads backslashes there, too, and fails at an empty element."""
    return html.escape(legal(text).replace("\n", " ") or " ", quote=False).replace("\\", "\\\\")


def attribute(text: str) -> str:
    r"""Escape text for a quoted attribute such as ``tooltip``; line breaks stay.

    Some versions of ``dot`` read ``\N`` and its like in tooltips twice. An invisible character behind the backslash
    keeps them from it.
    """
    text = _ESCAPES.sub("\\\\\u2060", legal(text)).replace("\\", "\\\\")
    return html.escape(text, quote=True).replace("\n", "&#10;")


def shorten(text: str, longest: int) -> str:
    """Cut the middle out of a text that is too long."""
    if len(text) <= longest:
        return text
    keep = longest - 1
    return text[: keep - keep // 2] + "\u2026" + text[len(text) - keep // 2 :]
