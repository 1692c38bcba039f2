"""Measure how the weight of a cache's FRS map is distributed, and how many positions a loss could skip.

python benchmarks/weight.py --cache work_dirs/full/cache --json docs/results/weight.json

For each FPN level, prints the share of positions with a weight above 0, and the share of the heaviest positions that
contain all but 1%, 0.1% and 0.001% of the level's sum. The values are means over views of the cache's first pass.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from pipeline.cache.cache import Cache
from pipeline.codecs.group import open_codec
from pipeline.tools.report.sample import DecodedSample

LEFT_OUT = (1e-2, 1e-3, 1e-5)


def needed_shares(m: Tensor) -> dict[str, float]:
    """Return the shares of one level's (H, W) positions. They are 0 for a level without weight."""
    heaviest = m.double().flatten().sort(descending=True).values
    total = heaviest.cumsum(0)
    found = {"not_zero": float((heaviest > 0).double().mean())}
    for share in LEFT_OUT:
        kept = int((total < (1 - share) * total[-1]).sum()) + 1 if total[-1] > 0 else 0
        found[f"for_{1 - share:.5g}"] = kept / len(heaviest)
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--cache", default="work_dirs/demo/cache")
    parser.add_argument("--views", type=int, default=64)
    args = parser.parse_args()
    cache = Cache(args.cache)
    codec = open_codec(cache)
    refs = itertools.chain.from_iterable(cache.references(cache.passes()[0]))
    sample = DecodedSample(cache, codec, list(itertools.islice(refs, args.views)))
    levels = [[needed_shares(m[0]) for m in sample.output(stored).frs] for _, stored in sample.stored]
    rows: list[dict[str, Any]] = [
        {"level": n, **{key: mean(row[key] for row in found) for key in found[0]}}
        for n, found in enumerate(zip(*levels))
    ]
    print(common.table(rows, list(rows[0])))
    common.write(args.json, rows, cache=args.cache, views=len(levels))


if __name__ == "__main__":
    main()
