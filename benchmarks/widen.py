"""Widen a thin trained teacher to mmdet's RetinaNet R101 with COCO's 80 classes, 256 channels, four head convolutions.

python benchmarks/widen.py --teacher work_dirs/benchmark/teacher.pth --out work_dirs/benchmark/teacher_wide.pth
python benchmarks/widen.py --thin configs/demo/teacher_retinanet_r101.py \
    --teacher demo/weights/teacher_retinanet_r101_thin.pth --out work_dirs/gpu/teacher.pth

Speed must be measured at real width. Weights trained on COCO are not available here, and outputs of random weights take
twenty times the bytes. Each channel of the thin network is therefore repeated, and the weights that read it are divided
by the number of copies (Net2WiderNet, arXiv 1511.05641). Missing convolutions of the head are identities
(Net2DeeperNet). The wide network computes the same outputs as the thin one. If the thin teacher has fewer than 80
classes, each becomes several classes with equal scores. `--anchors 1` keeps one anchor of nine, which gives 80 score
channels instead of 720. The outputs of both networks are compared before the weights are saved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.teacher.zoo import zoo_entry

THIN = "configs/benchmark/teacher_retinanet_r101_wide.py"
WIDE = "retinanet_r101_fpn_2x_coco"
ANCHORS, KEPT = 9, 4  # anchors per position; index of the square one of middle size, which --anchors 1 keeps
ONE_ANCHOR = {"ratios": [1.0], "scales_per_octave": 1, "octave_base_scale": 5}


def widen_tensor(thin: Tensor, shape: torch.Size) -> Tensor:
    """Repeat channels until the tensor has this shape. Sums over repeated inputs do not change."""
    for axis, size in enumerate(shape):
        times = size // thin.shape[axis]
        if times > 1:
            thin = thin.repeat_interleave(times, axis) / (times if axis == 1 else 1)
    if thin.shape != shape:
        raise SystemExit(f"error: cannot widen to shape {tuple(shape)}, got {tuple(thin.shape)}")
    return thin


def identity_convolution(name: str, shape: torch.Size) -> Tensor:
    """Return the weight or bias of an identity convolution. A ReLU after another ReLU has no effect."""
    if not name.endswith("weight"):
        return torch.zeros(shape)
    return torch.nn.init.dirac_(torch.empty(shape))


def outputs(model: Any, weights: dict[str, Tensor], pixels: Tensor) -> list[Tensor]:
    """Compute features and class logits of a detector."""
    detector = build(MODELS, {**model, "init_cfg": None}, "model").eval()
    detector.load_state_dict(weights)
    with torch.no_grad():
        features = detector.extract_feat(pixels)
        return [*features, *detector.bbox_head(features)[0]]


def one_anchor(thin: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a RetinaNet's weights with the rows of only one anchor."""
    heads = ("bbox_head.retina_cls.", "bbox_head.retina_reg.")
    return {name: w.unflatten(0, (ANCHORS, -1))[KEPT] if name.startswith(heads) else w for name, w in thin.items()}


def widen(config: str, teacher: Path, out: Path, anchors: int) -> int:
    """Write the wide teacher's weights, and its config next to them. Return the number of weights."""
    init_default_scope("mmdet")
    stored = torch.load(teacher, map_location="cpu", weights_only=True)
    thin, before, after = stored["state_dict"], Config.fromfile(config).model, Config.fromfile(zoo_entry(WIDE)[0]).model
    after.backbone.init_cfg = None
    if anchors == 1:
        thin = one_anchor(thin)
        for model in (before, after):
            model.bbox_head.anchor_generator.update(ONE_ANCHOR)
    wide = build(MODELS, after, "model").state_dict()
    weights = {
        name: widen_tensor(thin[name], value.shape) if name in thin else identity_convolution(name, value.shape)
        for name, value in wide.items()
    }
    pixels = torch.randn(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))
    for x, y in zip(outputs(before, thin, pixels), outputs(after, weights, pixels)):
        repeated = x.repeat_interleave(y.shape[1] // x.shape[1], 1)
        error = float((repeated - y).abs().max() / x.abs().max())
        if error > 1e-4:
            raise SystemExit(f"error: outputs of wide and thin network differ by {error:.1e}, expected at most 1e-4")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": weights, "meta": {}}, out)
    Config({"model": after}).dump(out.with_suffix(".py"))
    return sum(w.numel() for w in weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--thin", default=THIN, metavar="CONFIG", help="the thin teacher's config")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--anchors", type=int, choices=(1, ANCHORS), default=ANCHORS)
    args = parser.parse_args()
    count = widen(args.thin, args.teacher, args.out, args.anchors)
    print(f"{args.out}: {count / 1e6:.1f} million weights, outputs equal to the thin teacher's")


if __name__ == "__main__":
    main()
