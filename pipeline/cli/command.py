"""Command lines: arguments, and every user's error in one line with exit code 2."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli.signals import STOPPED, Stopped, advice, advise, stoppable
from pipeline.cli.terminal import LOGGER
from pipeline.errors import ConfigError, PipelineError, brief

USER_ERROR = 2
STARTED = time.perf_counter()
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def one_line(error: BaseException) -> str:
    """The message alone. From a loader's worker torch hands us the whole traceback as text: its last line is ours."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    # A name out of a foreign file may hold what a terminal obeys.
    return "".join(c if c.isprintable() else " " for c in text)


def guarded(main: Callable[[], None]) -> None:
    """Run an entry point; PipelineError ends in one line and code 2, Ctrl-C in one and 130, SIGTERM in one and 143."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with stoppable():
            main()
    except PipelineError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        LOGGER.info(f"error: {one_line(error)}")
        sys.exit(USER_ERROR)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a folder that cannot be written, a full disk, a host that does not answer
        kept = "; what was committed is kept, the same command goes on from there" if error.errno in FULL else ""
        said = error.strerror or one_line(error)
        print(f"error: {error.filename or type(error).__name__}: {said}{kept}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Stopped as stopped:
        print(advice(), file=sys.stderr)
        sys.exit(stopped.code)


@dataclass(frozen=True)
class Command:
    """A verb: what it does in one line, an example ({prog} stands for its name), its arguments, and what runs it.

    `stopped`: what is said when a signal ends it.
    """

    text: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    stopped: str = STOPPED

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Give a parser all of this."""
        parser.description, parser.formatter_class = self.text, argparse.RawDescriptionHelpFormatter
        parser.epilog = "example:\n  " + self.example.format(prog=parser.prog).replace("\n", "\n  ")
        self.add(parser)
        parser.set_defaults(run=self.run, stopped=self.stopped)


def begin(args: argparse.Namespace) -> None:
    """Run what was asked for. A config that is not there is told before mmdet is imported, which takes seconds."""
    advise(args.stopped)
    config = getattr(args, "config", None)
    if config is not None and not Path(config).is_file():
        raise ConfigError(f"{config}: no such config file")
    args.run(args)


def script(command: Command, name: str) -> None:
    """A command that stands alone in a file of this name."""
    parser = argparse.ArgumentParser(prog=f"python {name}")
    command.fill(parser)
    guarded(lambda: begin(parser.parse_args()))


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config and --cfg-options."""
    parser.add_argument("--config", required=True, metavar="C", help="one config file for both stages")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """mmdet's --cfg-options; may be given more than once."""
    text = "override config values"
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=text)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add the cache as a positional argument."""
    parser.add_argument("cache", help="the cache's folder or URL")


def add_cache_json(parser: argparse.ArgumentParser) -> None:
    """Add the cache and --json."""
    add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, found {text!r}")
    return int(text)


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """mmengine's own reading of --cfg-options key=value."""
    if not pairs:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    try:
        return parser.parse_args(["--cfg-options", *pairs]).cfg_options
    except (argparse.ArgumentError, ValueError, AssertionError, SyntaxError) as error:
        wrong = next((pair for pair in pairs if "=" not in pair), None)
        what = f"expected key=value, found {wrong!r}" if wrong else brief(error)
        raise ConfigError(f"--cfg-options: {what}") from error
