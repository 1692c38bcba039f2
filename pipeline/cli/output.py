"""Print and log. No name can control the terminal, and every name can be printed whatever the terminal's encoding."""

from __future__ import annotations

import io
import json
import locale
import logging
import sys
from typing import Any

from pipeline.text import printable

LOGGER = logging.getLogger("pipeline")


class SafeRecord(logging.LogRecord):
    """A record of any logger, mmengine's included, whose text every terminal and log file can show.

    mmengine opens its log file in the locale's encoding.
    """

    def getMessage(self) -> str:
        encoding = locale.getpreferredencoding(False)
        return printable(super().getMessage()).encode(encoding, "backslashreplace").decode(encoding)


def prepare_output() -> None:
    """Make the process's streams and loggers safe. Call it before a command line is parsed: --help prints too."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for example an accented path on an ASCII terminal
    logging.setLogRecordFactory(SafeRecord)


def show(text: str, error: bool = False) -> None:
    """Print text to standard output, or to standard error."""
    _print(printable(text), error)


def show_json(value: Any) -> None:
    """Print a JSON value. Python's encoder escapes all unsafe characters except DEL."""
    _print(json.dumps(value, indent=1).replace("\x7f", "\\u007f"), False)


def _print(text: str, error: bool) -> None:
    try:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
    except OSError as fault:  # output into a file on a full disk
        fault.filename = fault.filename or "standard output"
        raise


def log(text: str) -> None:
    """Print text to the terminal, and write it to the log file if there is one."""
    show(text)
    for line in text.splitlines():
        LOGGER.info(line)
