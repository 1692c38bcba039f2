"""Run all measurements that need a GPU with one command: `make gpu`, or

python benchmarks/gpu.py --out work_dirs/gpu/results --minutes 8
python benchmarks/gpu.py --out /tmp/out --device cpu --tiny          # every part at toy size, without a GPU

The parts run one after another, each in its own process. Each has a share of the total time, and unused time is given
to the next parts. A part that fails or exceeds its time is reported, and the next part starts. OUT/gpu.json and
OUT/gpu.md are written after every part. OUT/<part>.log contains the output of a part. Nothing is downloaded: the
teacher is the demo's, widened to mmdet's R101 (benchmarks/widen.py), and demo/make_data.py makes the data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common, gpu_page
from benchmarks.common import ROOT

FULL, TINY = "configs/benchmark/retinanet_r101_r50_gpu.py", "configs/demo/retinanet_r101_r50.py"
THIN = "configs/demo/teacher_retinanet_r101.py", "demo/weights/teacher_retinanet_r101_thin.pth"
NO_GPU = 2
GRACE = 10  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Part:
    """One measurement: its share of the total time, its commands, and the JSON that the last command writes."""

    name: str
    share: float
    commands: list[list[str]]
    result: str | None = None


def parts(args: argparse.Namespace) -> list[Part]:
    """Return all parts in order, at full or at tiny size."""
    work, out, tiny = args.work, args.out, args.tiny
    values = {"data_root": f"{work}/data/", "cache.dir": f"{work}/cache", "cache.passes": 1}
    if tiny:
        values |= {
            "cache.workers": 0,
            "train_dataloader.dataset.pipeline.2.scale": "(96,64)",
            "cache.calibration_views": 4,
            "cache.batch_size": 2,
            "cache.shard_samples": 4,
            "teacher.gate_images": 2,
            "teacher.min_map": 0.0,
        }
    else:
        values |= {"teacher.checkpoint": f"{work}/teacher_9.pth"}
    options = [f"{key}={value}" for key, value in values.items()]
    config = TINY if tiny else FULL
    config_arguments = ["--config", config, "--options", *options]
    teachers = [[f"{work}/teacher_{n}.py", f"{work}/teacher_{n}.pth"] for n in (9, 1)]
    teachers = [list(THIN)] if tiny else teachers
    data = ["demo/make_data.py", "--out", f"{work}/data", "--val", "4" if tiny else "8"]
    data += ["--train", "12"] if tiny else ["--train", "544", "--size", "480", "800", "--categories", "80"]
    widen = [
        [
            "benchmarks/widen.py",
            "--thin",
            THIN[0],
            "--teacher",
            THIN[1],
            "--anchors",
            str(n),
            "--out",
            f"{work}/teacher_{n}.pth",
        ]
        for n in (9, 1)
    ]
    stage1 = ["stage1_cache_teacher.py", "--config", config, "--cfg-options", *options]
    tests = [
        "-m",
        "pytest",
        "tests/gpu",
        "-m",
        "gpu",
        "--device",
        args.device,
        "-p",
        "no:cacheprovider",
        "--junitxml",
        f"{out}/tests.xml",
    ]
    tests += ["-k", args.tests or "codec or ops or precision"] if tiny else []
    codec = [
        "benchmarks/codec_device.py",
        *(word for pair in teachers for word in ("--teacher", *pair)),
        "--json",
        f"{out}/codec.json",
    ]
    step = ["benchmarks/step.py", *config_arguments, "--device", args.device, "--json", f"{out}/step.json"]
    if tiny:
        codec += [
            "--scale",
            "96",
            "64",
            "--batch-size",
            "2",
            "--rounds",
            "1",
            "--calibration-views",
            "4",
            "--calibrate-at",
            "96x64",
        ]
        step += ["--workers", "1", "--turns", "1", "--steps", "1", "--batch-sizes", "2"]
    else:
        step += [
            "--workers",
            "8",
            "--turns",
            "3",
            "--batches",
            "loaded",
            "synthetic",
            "--batch-sizes",
            "8",
            "2",
            "--precisions",
            "fp32",
            "amp",
            "tf32",
        ]
    cache = ["benchmarks/cache.py", *config_arguments, "--codec-of", f"{work}/cache", "--json", f"{out}/stage1.json"]
    cache += ["--shards", "1" if tiny else "5", "--turns", "1" if tiny else "3"]
    calibration = [
        "benchmarks/calibration.py",
        *config_arguments,
        "--views",
        "4" if tiny else "256",
        "--json",
        f"{out}/calibration.json",
    ]
    ledger = [
        "benchmarks/ledger.py",
        "--step",
        f"{out}/step.json",
        "--cache",
        f"{out}/stage1.json",
        "--json",
        f"{out}/ledger.json",
    ]
    ledger += [] if tiny else ["--batch-size", "8"]
    return [
        Part("prepare", 0.16, [data, *([] if tiny else widen), stage1]),
        Part("tests", 0.2, [tests]),
        Part("codec", 0.14, [codec], "codec.json"),
        Part("step", 0.28, [step], "step.json"),
        Part("stage1", 0.1, [cache], "stage1.json"),
        Part("calibration", 0.1, [calibration], "calibration.json"),
        Part("ledger", 0.02, [ledger], "ledger.json"),
    ]


def run(part: Part, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a part for at most `limit` seconds. Return its row, with its status and the results written so far."""
    begun, status = time.monotonic(), "done"
    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path), "PYTHONUNBUFFERED": "1"}
    if args.device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with open(args.out / f"{part.name}.log", "w") as log:
        for command in part.commands:
            left = limit - (time.monotonic() - begun)
            code = run_command([sys.executable, *command], log, environment, max(1.0, left))
            if code != 0:
                status = "exceeded its time" if code is None else f"failed with code {code}"
                break
    row: dict[str, Any] = {"name": part.name, "status": status, "seconds": time.monotonic() - begun, "limit_s": limit}
    path = args.out / part.result if part.result else None
    if path is not None and path.is_file():
        row["measured"] = json.loads(path.read_text())
    if part.name == "tests" and (args.out / "tests.xml").is_file():
        suite = next(ElementTree.parse(args.out / "tests.xml").getroot().iter("testsuite"))
        row["measured"] = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
    return row


def run_command(command: list[str], log: Any, environment: dict[str, str], seconds: float) -> int | None:
    """Run a command, and return its exit code, or None if it exceeded its time. Ends its child processes too."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, sent)
                process.wait(GRACE)
            except (ProcessLookupError, PermissionError):
                break
            except subprocess.TimeoutExpired:
                continue


def machine(device: str) -> dict[str, Any]:
    """Return the device, and the versions of driver and libraries."""
    import importlib.metadata

    import torch

    found = {**common.machine(), "cuda": torch.version.cuda, "driver": None, "device": device}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        tool = shutil.which(query[0])
        found["driver"] = subprocess.check_output(query, text=True).strip() if tool else None
        found["cudnn"] = torch.backends.cudnn.version()
    for name in ("mmdet", "mmcv", "mmengine", "numpy", "zarr", "numcodecs", "webdataset"):
        for package in (name, f"onedl-{name}", f"{name}-lite", "onedl-mmdetection"):
            try:
                found[name] = importlib.metadata.version(package)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json, gpu.md and the logs")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes: checks that every part runs; the figures are meaningless"
    )
    parser.add_argument("--work", type=Path, default=Path("work_dirs/gpu"), help="folder for data, teacher and cache")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--tests", metavar="EXPRESSION", help="with --tiny: value of pytest's -k")
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu: full size takes days on a CPU; add --tiny")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            print(
                f"error: torch {torch.__version__} finds no CUDA device; run this on a machine with an NVIDIA GPU and "
                "torch built for CUDA, or use --device cpu --tiny",
                file=sys.stderr,
            )
            sys.exit(NO_GPU)
    args.out, args.work = args.out.resolve(), args.work.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in parts(args) if not args.only or part.name in args.only]
    end, rows = time.monotonic() + 60 * args.minutes, list[dict[str, Any]]()
    found: dict[str, Any] = {"machine": machine(args.device), "minutes": args.minutes, "tiny": args.tiny, "parts": rows}
    for number, part in enumerate(chosen):
        share = part.share / sum(other.share for other in chosen[number:])
        rows.append(run(part, args, max(1.0, share * (end - time.monotonic()))))
        print(f"{part.name:12} {rows[-1]['status']}, {rows[-1]['seconds']:.0f} s", flush=True)
        (args.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.out / "gpu.md").write_text(gpu_page.page(found))
    failed = [row["name"] for row in rows if row["status"] != "done"]
    print(f"results      {args.out / 'gpu.md'}")
    if failed:
        print(
            f"error: {len(failed)} of {len(rows)} parts failed or exceeded their time: {', '.join(failed)}; see their "
            ".log files in "
            f"{args.out}",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
