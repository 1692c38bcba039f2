"""Run `python -m pipeline <verb>` or `frs-cache <verb>`."""

# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pipeline.cli.command import Parser, guarded, run_verb
from pipeline.cli.export import EXPORT
from pipeline.cli.info import INFO
from pipeline.cli.output import prepare_output
from pipeline.cli.plan import PLAN
from pipeline.cli.reencode import REENCODE
from pipeline.cli.repair import REPAIR
from pipeline.cli.report import REPORT
from pipeline.cli.stage1 import STAGE1
from pipeline.cli.stage2 import STAGE2
from pipeline.cli.verify import VERIFY

COMMANDS = {
    "plan": PLAN,
    "stage1": STAGE1,
    "stage2": STAGE2,
    "info": INFO,
    "verify": VERIFY,
    "repair": REPAIR,
    "export": EXPORT,
    "report": REPORT,
    "reencode": REENCODE,
}
ABOUT = "Run a detection teacher once, cache its outputs, and train any number of students from the cache."
EPILOG = """examples:
  {prog} info work_dirs/demo/cache
  {prog} stage1 --help

tab completion in bash or zsh:
  eval "$(register-python-argcomplete frs-cache)\""""


def parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    root = Parser(
        prog=prog,
        description=ABOUT,
        epilog=EPILOG.format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, command in COMMANDS.items():
        command.fill(verbs.add_parser(name, help=command.text.rstrip(".")))
    return root


def main() -> None:
    """Parse the command line and run its verb."""
    prepare_output()
    name = Path(sys.argv[0]).name
    root = parser("python -m pipeline" if name == "__main__.py" else name)
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(root)
    args = root.parse_args()
    guarded(lambda: run_verb(args))
