"""Text that is safe to print and to log.

Names come from caches, annotation files and checkpoints of others. A terminal acts on the control characters in them,
and a character that changes the direction of text can make a line look like another one.
"""

from __future__ import annotations

import re
from typing import Any

# C0 without tab and newline, DEL, C1, marks and overrides of the text direction, line separators, lone surrogates.
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text in which every unsafe character is replaced by its escape, for example \x1b."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return `printable` text without line breaks and tabs."""
    return printable(re.sub(r"[\t\r\n]+", " ", text))


def one_line_each(value: Any) -> Any:
    """Apply `one_line` to every string in a JSON value, keys included: a name must not add a line to a table."""
    if isinstance(value, dict):
        return {one_line_each(key): one_line_each(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [one_line_each(inner) for inner in value]
    return one_line(value) if isinstance(value, str) else value
