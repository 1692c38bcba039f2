"""Try every config of mmdet's own zoo: which detectors work as teacher and as student, and what stops the others.

python benchmarks/zoo.py --json docs/results/zoo.json
python benchmarks/zoo_page.py docs/results/zoo.json

Each config is the `_base_` of a config with the four sections, as a user would write it. The product's own checks judge
its data set, views, schedule, hooks and metric on a small data set with the same classes. Its detector is built with
random weights, runs as teacher on two views of 128x96, and trains one distillation step as student of that teacher.
Deep backbones run with fewer layers (50), and ResNeXt without groups. Detectors that differ only in these, in widths,
in numbers of classes, or in thresholds run once.

Every check runs in a process of its own, with limits of time and memory. An interrupted run resumes from --rows.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mmdet
import torch
import torch._dynamo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, zoo_checks, zoo_features, zoo_keys, zoo_model

ZOO = Path(mmdet.__file__).parent / ".mim" / "configs"
SECONDS, GB = 900, 14


def zoo_configs() -> list[str]:
    """Return the config files of the zoo, without those that only serve as base of others."""
    return [str(path.relative_to(ZOO)) for path in sorted(ZOO.rglob("*.py")) if "_base_" not in path.parts]


def try_settings(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """Load a config and check everything but its detector."""
    found: dict[str, Any] = {}
    loaded = zoo_checks.outcome(found, "load", lambda: zoo_checks.read_config(ZOO / name, folder))
    if loaded is None:
        return found
    cfg, _ = loaded
    zoo_keys.make_light(cfg)
    found["key"] = zoo_keys.key_of(cfg)
    return found | zoo_checks.check_settings(cfg, data)


def try_model(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """Run a config's detector."""
    begun = time.perf_counter()
    cfg, sections = zoo_checks.read_config(ZOO / name, folder)
    _, features = zoo_checks.read_config(ZOO / name, folder, zoo_features.FEATURES_ONLY)
    zoo_keys.make_light(cfg)
    found = zoo_model.check_model(cfg, sections, features, data, zoo_checks.outcome)
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


def apart(task: Any, name: str, data: Path) -> dict[str, Any]:
    """Run a task in a child process with limits. Return its result, or which limit it passed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        torch.set_num_threads(1)  # the models are small, and threads wait for each other on a busy machine
        resource.setrlimit(resource.RLIMIT_DATA, (GB * 10**9, GB * 10**9))
        with tempfile.TemporaryDirectory() as folder:
            sender.send(task(name, data, Path(folder)))

    child = context.Process(target=work)
    child.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(SECONDS) else {"limit": ["limit", f"more than {SECONDS} s"]}
    except EOFError:
        found = {"limit": ["fault", "the process ended without a result"]}
    child.kill()
    child.join()
    return found


def read_rows(path: Path, field: str) -> dict[str, dict[str, Any]]:
    """Read the rows of an earlier run that have a field, by its value."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row[field]: row for row in map(json.loads, lines) if field in row}


def by_use(settings: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Return (key, config to run) of every different detector, those of many configs first."""
    groups: dict[str, list[str]] = {}
    for name, row in settings.items():
        if "key" in row:
            groups.setdefault(row["key"], []).append(name)
    return [(key, names[0]) for key, names in sorted(groups.items(), key=lambda item: -len(item[1]))]


def joined(settings: dict[str, dict[str, Any]], models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each config: the outcomes of its settings and of its detector. None: no obstacle."""
    rows = []
    for row in settings.values():
        found = {**row, **models.get(row.get("key", ""), {})}
        kept = {part: value for part, value in found.items() if part not in ("key", "model", "first", "seconds")}
        rows.append({part: without_folders(value) for part, value in kept.items()})
    return rows


def without_folders(value: Any) -> Any:
    """Return an outcome whose line names files without this machine's folders."""
    return [value[0], re.sub(r"(?<![\w:/])(/[\w.@+-]+)+/", "", value[1])] if isinstance(value, list) else value


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", type=Path, default=Path("work_dirs/zoo/rows.jsonl"), help="results so far")
    parser.add_argument("--only", default="", help="configs whose path contains this text")
    parser.add_argument("--no-models", action="store_true", help="check everything but the detectors")
    args = parser.parse_args()
    common.quiet()
    gc.freeze()  # mmengine collects garbage for each data set; the imported modules need not be visited
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    settings, models = read_rows(args.rows, "name"), read_rows(args.rows, "model")
    with tempfile.TemporaryDirectory() as data, open(args.rows, "a") as file:

        def store(row: dict[str, Any]) -> dict[str, Any]:
            print(json.dumps({part: value for part, value in row.items() if part not in ("key", "model")}), flush=True)
            file.write(json.dumps(row) + "\n")
            file.flush()
            return row

        for name in zoo_configs():
            if name not in settings and args.only in name:
                settings[name] = store({"name": name, **apart(try_settings, name, Path(data))})
        for key, name in by_use(settings) if not args.no_models else ():
            if key not in models and args.only in name:
                models[key] = store({"model": key, "first": name, **apart(try_model, name, Path(data))})
    if args.json:
        common.write(args.json, joined(settings, models), models=len(models))


if __name__ == "__main__":
    main()
