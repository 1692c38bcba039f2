"""What the long counts share: a small real cache, its reading as stage 2 does it, and a JSON file of figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

import pipeline.stage1.run  # noqa: F401  (so that no child has to)
from pipeline.cache.cache import Cache
from pipeline.cache.versions import VERSION
from pipeline.codecs.group import open_codec
from tests.helpers.configs import make_config
from tests.helpers.datasets import make_dataset
from tests.helpers.detectors import detector, save_teacher
from tests.helpers.stages import begin_cache

torch.set_num_threads(1)  # the last digits of a convolution's sums depend on it
os.environ["OMP_NUM_THREADS"] = "1"


def arguments(text: str | None, count: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=count, help=f"how many tries (default: {count})")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    return parser.parse_args()


def small_config(folder: Path, codec: str = "frs", images: int = 12, version: int = VERSION) -> Path:
    """Config of both stages on a dozen JPEGs and a thin RetinaNet; its cache will be at folder/cache."""
    teacher = save_teacher(folder / "teacher", detector("retinanet"))
    data = make_dataset(folder / "data", images)
    config = make_config(data, teacher, detector("retinanet"), folder, codec)
    if version != VERSION:
        begin_cache(config, version)
    return config


def read_as_stage2(root: Path) -> int:
    """Everything that stage 2 reads of a cache in all its epochs. Returns the number of samples."""
    cache, count = Cache(root), 0
    codec = open_codec(cache)
    cache.content()
    for number in cache.passes():
        for n, refs in enumerate(cache.references(number)):
            reader = cache.shard(number, n)
            for ref in refs:
                reader.read(ref.index, codec)
                count += 1
            reader.close()
    return count


def record(args: argparse.Namespace, begun: float, figures: dict[str, Any]) -> None:
    """Print the figures; write them with machine, date and command."""
    found = {
        "command": "python -m tests.torture." + Path(sys.argv[0]).stem + " " + " ".join(sys.argv[1:]),
        "machine": f"{os.cpu_count()}-core CPU VM, Python {platform.python_version()}",
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - begun, 1),
        **figures,
    }
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
