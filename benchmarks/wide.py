"""Measure the memory of stage 1 with wide heads, from outside of its process: calibration, and batches of 2 at 640x480.

python benchmarks/wide.py --json docs/results/wide.json

Teachers: RetinaNet with random weights, half of ResNet-18's width and 32 FPN channels, because memory and time of
a wide head are those of its scores. 365 classes of Objects365 or 1,203 of LVIS, with 9 anchors each. Images: random
rectangles. The kernel reports the largest memory of the process.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common

CLASSES = {"Objects365": 365, "LVIS": 1203}
IMAGES, SIZE, WIDTH = 6, (640, 480), 32


def make_config(folder: Path, classes: int, codec: str) -> Path:
    """Write images, a teacher with random weights, and the config of both stages. Return the config's path."""
    import cv2
    import numpy as np
    import torch

    from pipeline.cache.canonical import canonical
    from pipeline.mmdet_compat.registry import MODELS, Config
    from tests.helpers.configs import make_config as config_of
    from tests.helpers.detectors import detector

    data, names = folder / "data", tuple(f"class {n}" for n in range(classes))
    (data / "images").mkdir(parents=True)
    rng, content = np.random.default_rng(0), dict[str, Any](images=[], annotations=[])
    content["categories"] = [{"id": n + 1, "name": name} for n, name in enumerate(names)]
    width, height = SIZE
    for n in range(IMAGES):
        picture = rng.integers(0, 90, (height, width, 3), np.uint8)
        picture[100:300, 50 + 60 * n : 250 + 60 * n] = 255
        cv2.imwrite(str(data / "images" / f"{n}.jpg"), picture)
        content["images"].append({"id": n + 1, "file_name": f"{n}.jpg", "width": width, "height": height})
        box = {"id": n + 1, "image_id": n + 1, "category_id": n + 1, "bbox": [50, 100, 200, 200], "area": 40000}
        content["annotations"].append({**box, "iscrowd": 0})
    (data / "annotations.json").write_bytes(canonical(content))
    model = Config(detector("retinanet", depth=18))
    model.backbone.base_channels = WIDTH
    model.neck.update(in_channels=[WIDTH * 2**n for n in range(4)], out_channels=WIDTH)
    model.bbox_head.update(num_classes=classes, in_channels=WIDTH, feat_channels=WIDTH)
    torch.manual_seed(0)
    built = MODELS.build(model)
    built.init_weights()
    with torch.no_grad():  # so that scores differ between positions and classes
        built.bbox_head.retina_cls.weight.normal_(0, 0.3)
        built.bbox_head.retina_cls.bias.fill_(-4.0)
    torch.save({"state_dict": built.state_dict(), "meta": {"dataset_meta": {"classes": names}}}, folder / "teacher.pth")
    Config({"model": model.to_dict(), "default_scope": "mmdet"}).dump(folder / "teacher.py")
    teacher = {"config": str(folder / "teacher.py"), "checkpoint": str(folder / "teacher.pth")}
    changes: dict[str, Any] = {"train_dataloader.dataset.metainfo.classes": names, "cache.codec.quality": 0.3}
    for key in ("val_dataloader", "test_dataloader"):
        changes[f"{key}.dataset.metainfo.classes"] = names
    changes["train_dataloader.dataset.pipeline.2.scale"] = SIZE
    return config_of(data, teacher, model.to_dict(), folder / codec, codec, **changes)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--heads", nargs="*", default=list(CLASSES))
    parser.add_argument("--codecs", nargs="*", default=["frs", "frs2"])
    args = parser.parse_args()
    common.quiet()
    rows = common.rows_so_far(args.json)
    for head in args.heads:
        for codec in args.codecs:
            if any((row["head"], row["codec"]) == (head, codec) for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                config = make_config(Path(folder), CLASSES[head], codec)
                options = ["cache.passes=1", "cache.calibration_views=6", "teacher.gate_images=1"]
                command = ["stage1_cache_teacher.py", "--config", str(config), "--cfg-options", *options]
                used = common.run(command, Path(folder, "log"))
                print(Path(folder, "log").read_text()[-1500:])
            row = {"head": head, "score_channels": 9 * CLASSES[head], "codec": codec, "peak_gb": used.peak_gb}
            rows.append({**row, "seconds": used.seconds, "cpu_seconds": used.cpu_seconds})
            print(common.table(rows[-1:], list(rows[-1])), flush=True)
            common.write(args.json, rows, images=IMAGES, size=SIZE, batch_size=2)


if __name__ == "__main__":
    main()
