"""Pre-train a thin ResNet by classifying cut-outs. The demo uses it like ImageNet weights on COCO.

    python demo/pretrain_backbone.py --depth 50 --out demo/weights/resnet50_thin.pth
    python demo/pretrain_backbone.py --depth 101 --out work_dirs/resnet101_thin.pth

The file is a plain dict(state_dict, meta) for init_cfg=dict(type='Pretrained', checkpoint=...).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.coco_names import ALL_CATEGORIES
from demo.crops import CropBatches
from demo.schedule import Progress, rate
from pipeline.mmdet_compat.ops.stand_in import install

WIDTH = 16  # base_channels: a quarter of the stock network in every layer


def build_backbone(depth: int) -> nn.Module:
    """Build mmdet's ResNet of ``depth`` with 16 base channels, newly initialised and without frozen stages."""
    install()
    from mmdet.models.backbones import ResNet

    norm = dict(type="BN", requires_grad=True)
    backbone = ResNet(depth=depth, base_channels=WIDTH, frozen_stages=-1, norm_eval=False, norm_cfg=norm)
    backbone.init_weights()
    return backbone


class Classifier(nn.Module):
    """Backbone, global average, and one linear layer to the 80 categories."""

    def __init__(self, depth: int):
        super().__init__()
        self.backbone = build_backbone(depth)
        self.head = nn.Linear(WIDTH * 32, len(ALL_CATEGORIES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images)[-1].mean(dim=(2, 3)))


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Compute the share of crops whose highest score is correct."""
    model.eval()
    correct, total = 0, 0
    for images, labels in batches:
        correct += int((model(images).argmax(1) == labels).sum())
        total += len(labels)
    model.train()
    return correct / total


def train(model: nn.Module, loader: DataLoader, lr: float, clock: Progress) -> int:
    """Train for one pass over ``loader`` with AdamW. Return the number of steps, fewer if the time is over."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.05)
    correct, total = 0, 0
    for step, (images, labels) in enumerate(loader, start=1):
        progress = clock.at(step - 1)
        if progress >= 1.0:
            return step - 1
        optimizer.param_groups[0]["lr"] = lr * rate(progress, warmup=0.1)
        logits = model(images.contiguous(memory_format=torch.channels_last))
        loss = criterion(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        correct, total = correct + int((logits.argmax(1) == labels).sum()), total + len(labels)
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.3f} top-1 {correct / total:.3f} {clock.seconds():.0f} s", flush=True)
            correct, total = 0, 0
    return clock.steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, choices=(50, 101), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--minutes", type=float, help="time limit; the learning rate still falls to 0")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=520)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    model = Classifier(args.depth)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    crops = CropBatches(args.seed, args.steps, args.batch_size)
    loader = DataLoader(crops, batch_size=None, num_workers=1)
    steps = train(model, loader, args.lr, Progress(args.steps, args.minutes))
    held_out = CropBatches(args.seed, 16, 128, first=args.steps * args.batch_size)
    top1 = accuracy(model, DataLoader(held_out, batch_size=None))
    weights = {k: v.contiguous() for k, v in model.backbone.state_dict().items()}
    crop_count = steps * args.batch_size
    meta = dict(depth=args.depth, base_channels=WIDTH, crops=crop_count, top1=round(top1, 4))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights, meta=meta), args.out)
    print(f"top-1 on held-out crops {top1:.3f}; wrote {args.out}")


if __name__ == "__main__":
    main()
