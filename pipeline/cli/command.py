"""Parse command lines. Every user error ends in one line and exit code 2."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pipeline.cli.output import LOGGER, prepare_output, show
from pipeline.cli.signals import INTERRUPTED, Interrupted, interruptible
from pipeline.errors import ConfigError, PipelineError, brief
from pipeline.text import one_line

USER_ERROR = 2
INNER_SPACES = re.compile(r"(?<![\s,(\[=]) +(?![\s,)\]]|$)")  # not those that separate the parts of a list
KEPT = "\0"  # replaces a space while mmengine parses; no argument of a process can contain it
STARTED = time.perf_counter()
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one safe line; --help of each verb is set up by `Command`."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message))


def message_of(error: BaseException) -> str:
    """Return the message of an error. torch wraps an error of a worker in a traceback; its last line is the message."""
    text = str(error).strip()
    if text.startswith("Caught "):
        text = text.splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")
    return one_line(text)


def guarded(main: Callable[[], None]) -> None:
    """Run an entry point. A PipelineError prints one line and exits with 2, Ctrl-C with 130, SIGTERM with 143."""
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        with interruptible():
            main()
    except PipelineError as error:
        show(f"error: {message_of(error)}", error=True)
        LOGGER.info(f"error: {message_of(error)}")
        sys.exit(USER_ERROR)
    except BrokenPipeError:  # the reader of a pipe has closed it, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:  # a read-only folder, a full disk, an unreachable host
        hint = "; committed data is kept. Rerun the same command to resume." if error.errno in DISK_ERRORS else ""
        reason = error.strerror or message_of(error)
        where = one_line(str(error.filename or type(error).__name__))
        show(f"error: {where}: {reason}{hint}", error=True)
        sys.exit(USER_ERROR)
    except UnicodeEncodeError as error:
        where = one_line(error.object[:200])
        show(f"error: {where!r}: cannot be written as {error.encoding}; rename it, or set PYTHONUTF8=1", error=True)
        sys.exit(USER_ERROR)
    except Interrupted as interrupted:
        show(interrupted.message, error=True)
        sys.exit(interrupted.code)


@dataclass(frozen=True)
class Command:
    """A verb of the command line.

    text: what the verb does, in one line. example: command lines, where {prog} is replaced by the program's name.
    add: adds the arguments to a parser. run: runs the verb. exit_message: printed when a signal ends the verb.
    """

    text: str
    example: str
    add: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    exit_message: str = INTERRUPTED

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Set up a parser for this verb."""
        parser.description, parser.formatter_class = self.text, argparse.RawDescriptionHelpFormatter
        parser.epilog = "example:\n  " + self.example.format(prog=parser.prog).replace("\n", "\n  ")
        self.add(parser)
        parser.set_defaults(run=self.run, exit_message=self.exit_message)


def let_threads_sleep() -> None:
    """Let idle OpenMP threads sleep instead of spin. Call this before torch is imported.

    Beside other work, threads that spin take the cores from those that they wait for. A user's own setting is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_verb(args: argparse.Namespace) -> None:
    """Run the requested verb. Raise ConfigError for a missing config before mmdet is imported, which takes seconds."""
    let_threads_sleep()
    config = getattr(args, "config", None)
    if config is None and getattr(args, "cfg_options", None):
        raise ConfigError("--cfg-options: changes values of a config; add --config C")
    if config is not None and not Path(config).is_file():
        raise ConfigError(f"{config}: no such config file")
    with interruptible(args.exit_message):
        args.run(args)


def run_script(command: Command, name: str) -> None:
    """Run a verb as the script `name`."""
    prepare_output()
    parser = Parser(prog=f"python {name}")
    command.fill(parser)
    guarded(lambda: run_verb(parser.parse_args()))


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config and --cfg-options."""
    parser.add_argument("--config", required=True, metavar="C", help="one config file for both stages")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add mmdet's --cfg-options, which may be repeated."""
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
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return int(text)


def _keep_spaces(pair: str) -> str:
    return INNER_SPACES.sub(lambda spaces: KEPT * len(spaces[0]), pair)


def _with_spaces(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_with_spaces(inner) for inner in value)
    return value.replace(KEPT, " ") if isinstance(value, str) else value


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """Parse --cfg-options key=value pairs as mmengine does. Raise ConfigError where one cannot be parsed.

    mmengine removes every space, also those of a path. Spaces inside a value are kept here.
    """
    if not pairs:
        return {}
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction)
    try:
        found = parser.parse_args(["--cfg-options", *map(_keep_spaces, pairs)]).cfg_options
        return {key.replace(KEPT, " "): _with_spaces(value) for key, value in found.items()}
    except (argparse.ArgumentError, ValueError, AssertionError, SyntaxError) as error:
        wrong = next((pair for pair in pairs if "=" not in pair), None)
        what = f"expected key=value, found {wrong!r}" if wrong else brief(error)
        raise ConfigError(f"--cfg-options: {what}") from error
