"""python -m pipeline <verb>: look at a cache. Needs neither mmdet nor a GPU."""

from __future__ import annotations

import argparse
import json

from pipeline import cli


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("info", "what a cache holds"), ("verify", "read every byte and compare its digests")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("cache", help="the cache's folder or URL")
        sub.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()

    from pipeline.report import describe, info_table, verify

    found = describe(args.cache) if args.verb == "info" else verify(args.cache)
    if args.json:
        cli.log(json.dumps(found, indent=1))
    else:
        whole = f"whole    {found.get('files')} files, {found['bytes'] / 1e6:.1f} MB"
        cli.log(info_table(found) if args.verb == "info" else whole)


if __name__ == "__main__":
    cli.guarded(main)
