"""The codec benchmark's trained teacher as a real mmdet RetinaNet R101, 256 channels and four head convolutions.

python benchmarks/widen.py --teacher work_dirs/benchmark/teacher.pth --out work_dirs/benchmark/teacher_wide.pth

Speed has to be measured at real width, but no weights trained on COCO are at hand, and what random weights say takes
twenty times the bytes. So each channel of the thin backbone is repeated four times and its readers' weights are divided
by four (Net2WiderNet, arXiv 1511.05641), and the head's missing convolutions pass on what they get (Net2DeeperNet):
the wide network computes what the thin one does, at the cost of the wide one. The two are compared before it is saved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.mm import MODELS, Config, build
from pipeline.teacher.zoo import zoo_entry

THIN = "configs/benchmark/teacher_retinanet_r101_wide.py"
WIDE = "retinanet_r101_fpn_2x_coco"


def widened(thin: Tensor, shape: torch.Size) -> Tensor:
    """Every channel repeated until the shape fits; a sum over repeated inputs stays what it was."""
    for axis, size in enumerate(shape):
        times = size // thin.shape[axis]
        if times > 1:
            thin = thin.repeat_interleave(times, axis) / (times if axis == 1 else 1)
    if thin.shape != shape:
        raise SystemExit(f"cannot widen to {tuple(shape)}, got {tuple(thin.shape)}")
    return thin


def passing_on(name: str, shape: torch.Size) -> Tensor:
    """Weight or bias of a convolution that gives what it gets; its ReLU changes nothing behind another ReLU."""
    if not name.endswith("weight"):
        return torch.zeros(shape)
    return torch.nn.init.dirac_(torch.empty(shape))


def answer(config: Config, weights: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Features and class logits."""
    detector = build(MODELS, {**config.model, "init_cfg": None}, "model").eval()
    detector.load_state_dict(weights)
    with torch.no_grad():
        features = detector.extract_feat(pixels)
        return [*features, *detector.bbox_head(features)[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    init_default_scope("mmdet")
    stored = torch.load(args.teacher, map_location="cpu", weights_only=False)
    thin = stored["state_dict"]
    before, after = Config.fromfile(THIN), Config.fromfile(zoo_entry(WIDE)[0])
    wide = build(MODELS, {**after.model, "backbone": {**after.model.backbone, "init_cfg": None}}, "model").state_dict()
    weights = {
        name: widened(thin[name], value.shape) if name in thin else passing_on(name, value.shape)
        for name, value in wide.items()
    }
    pixels = torch.randn(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))
    for x, y in zip(answer(before, thin, pixels), answer(after, weights, pixels)):
        error = float((x - y).abs().max() / x.abs().max())
        if error > 1e-4:
            raise SystemExit(f"the wide network answers otherwise: {error:.1e} of the largest value")
    torch.save({"state_dict": weights, "meta": stored.get("meta", {})}, args.out)
    print(f"{args.out}: {sum(w.numel() for w in weights.values()) / 1e6:.1f} million weights, the same answers")


if __name__ == "__main__":
    main()
