"""python -m pipeline <verb>: look at a cache (needs neither mmdet nor a GPU), or repair it."""

from __future__ import annotations

import argparse
import json

from pipeline import cli, mend


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("info", "what a cache holds"), ("verify", "read every byte and compare its digests")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("cache", help="the cache's folder or URL")
        sub.add_argument("--json", action="store_true", help="print JSON")
        if verb == "verify":
            mend.add_verify(sub)
    sub = verbs.add_parser("repair", help="compute again what is damaged, and only that")
    cli.add_config(sub)
    args = parser.parse_args()

    if args.verb == "verify":
        mend.run_verify(args)
        return
    if args.verb == "repair":
        mend.run_repair(args)
        return
    from pipeline.report import describe, info_table

    found = describe(args.cache)
    cli.log(json.dumps(found, indent=1) if args.json else info_table(found))


if __name__ == "__main__":
    cli.guarded(main)
