"""Run each COCO config of the paper's table through both stages, with random weights, on a few images.

python benchmarks/rows.py --json docs/results/rows.json

Both stages run as a user runs them, on 80-class scenes in COCO's layout. Only data_root, the teacher's file, the number
of images and their scale (times --shrink) differ from a real run. Peak memory is that reported by the system for each
command.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from demo.coco_names import ALL_CATEGORIES
from pipeline.config import load_config
from pipeline.mmdet_compat.registry import MODELS, build
from pipeline.teacher.zoo import find_teacher

ROWS = (
    "retinanet_r101_r50_2x",
    "retinanet_r101_r18_2x",
    "retinanet_r101_r50_fpn384_2x",
    "gfl_r101_r50_1x",
    "gfl_r101_r50_ms2x",
    "faster_rcnn_r101_r50_1x",
    "fcos_r101_r50_ms2x",
)
COLUMNS = [
    "row",
    "score_channels",
    "views",
    "kb_view",
    "smaller_than_fp16",
    "probe_features",
    "probe_scores",
    "stage1_s",
    "stage1_gb",
    "stage2_s",
    "stage2_gb",
    "steps",
    "loss",
    "loss_frs_feature",
    "loss_frs_score",
]


def make_data(root: Path, images: int) -> None:
    """Generate scenes with COCO's file names."""
    made = root / "made"
    command = ["demo/make_data.py", "--out", str(made), "--categories", "80", "--size", "480", "640"]
    common.run([*command, "--train", str(images), "--val", "2"])
    (root / "annotations").mkdir(exist_ok=True)
    for split in ("train", "val"):
        for link, target in (
            (f"annotations/instances_{split}2017.json", f"annotations/instances_{split}.json"),
            (f"{split}2017", split),
        ):
            (root / link).unlink(missing_ok=True)
            (root / link).symlink_to(made / target)


def random_teacher(config: Path, out: Path) -> int:
    """Write random weights of a config's teacher, and return its number of score channels."""
    _, sections = load_config(str(config))
    spec = find_teacher(sections.teacher)
    torch.manual_seed(0)
    spec.cfg.model.backbone.init_cfg = None
    model = build(MODELS, spec.cfg.model, "teacher")
    model.init_weights()
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": tuple(ALL_CATEGORIES)}}}, out)
    head = getattr(model, "rpn_head", None) or model.bbox_head
    return int(getattr(head, "num_base_priors", 1) * head.cls_out_channels)


def shrink_scales(config: Path, factor: float) -> dict[str, Any]:
    """Return config options that multiply every scale of a config's pipelines by `factor`."""
    cfg, _ = load_config(str(config))
    found = {}
    for loader in ("train_dataloader", "val_dataloader"):
        for number, transform in enumerate(cfg[loader].dataset.pipeline):
            for key in {"scale", "scales"} & transform.keys():
                scales = np.array(transform[key]) * factor
                found[f"{loader}.dataset.pipeline.{number}.{key}"] = plain_scales(scales.round().astype(int).tolist())
    return found


def plain_scales(value: list[Any]) -> str:
    """Format [[800, 480], ...] or [800, 480] for --cfg-options."""
    if isinstance(value[0], list):
        return "[" + ",".join(map(plain_scales, value)) + "]"
    return f"({value[0]},{value[1]})"


def shared_folder(config: Path, work: Path) -> Path:
    """Return the folder of the teacher and cache that all rows of one teacher share."""
    return work / Path(load_config(str(config))[1].cache.dir).parent.name


def row(config: Path, work: Path, factor: float) -> dict[str, Any]:
    """Run one config through both stages, and return its row."""
    folder = work / config.stem
    folder.mkdir(parents=True, exist_ok=True)
    shared = shared_folder(config, work)
    shared.mkdir(exist_ok=True)
    channels = random_teacher(config, shared / "teacher.pth")
    given = {
        "data_root": work / "coco",
        "teacher.checkpoint": shared / "teacher.pth",
        "teacher.min_map": 0,
        "teacher.gate_images": 1,
        "cache.dir": shared / "cache",
        "cache.workers": 1,
        "cache.batch_size": 2,
        "model.backbone.init_cfg": None,
        "train_dataloader.batch_size": 2,
        "train_dataloader.num_workers": 1,
        "val_dataloader.num_workers": 0,
        "val_dataloader.persistent_workers": False,
        "train_cfg.max_epochs": 1,
        "default_hooks.logger.interval": 1,
        **shrink_scales(config, factor),
    }
    options = ["--config", str(config), "--cfg-options", *(f"{key}={value}" for key, value in given.items())]
    seconds, _, gb = common.run(["stage1_cache_teacher.py", *options], folder / "stage1.log")
    cache = json.loads((shared / "cache" / "summary.json").read_text())
    error = json.loads((shared / "cache" / "codec.json").read_text())["settings"]["probe_error"]
    learn = ["stage2_distill.py", "--work-dir", str(folder / "run"), *options]
    learn_s, _, learn_gb = common.run(learn, folder / "stage2.log")
    losses = re.findall(r"Epoch\(train\).* (loss: .*)", (folder / "stage2.log").read_text())
    last = dict(re.findall(r"(loss\w*): ([\d.einf+-]+)", losses[-1]))
    return {
        "row": config.stem,
        "score_channels": channels,
        "views": cache["views"],
        "kb_view": cache["bytes_per_view"] / 1e3,
        "smaller_than_fp16": cache["ratio_to_fp16"],
        "probe_features": error["feature"],
        "probe_scores": error["score"],
        "stage1_s": seconds,
        "stage1_gb": gb,
        "stage2_s": learn_s,
        "stage2_gb": learn_gb,
        "steps": len(losses),
        **{name: float(last[name]) for name in ("loss", "loss_frs_feature", "loss_frs_score")},
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--shrink", type=float, default=0.6, help="0.6: the short side of 800 becomes 480")
    parser.add_argument("--work", type=Path, default=Path("work_dirs/rows"))
    args = parser.parse_args()
    common.quiet()
    work = args.work.resolve()
    make_data(work / "coco", args.images)
    rows = common.rows_so_far(args.json)
    done = {row["row"] for row in rows}
    configs = [common.ROOT / "configs" / "coco" / f"{name}.py" for name in args.rows if name not in done]
    for config in configs:  # stage 1 would reuse an existing cache
        shutil.rmtree(shared_folder(config, work) / "cache", ignore_errors=True)
    for config in configs:
        rows.append(row(config, work, args.shrink))
        print(common.table(rows[-1:], COLUMNS), flush=True)
        common.write(args.json, rows, images=args.images, shrink=args.shrink)
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
