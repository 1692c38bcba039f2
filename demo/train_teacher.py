"""Train the demo's teacher on freshly rendered scenes, and measure it on the demo's val split.

    python demo/pretrain_backbone.py --depth 101 --out work_dirs/resnet101_thin.pth
    python demo/train_teacher.py --backbone work_dirs/resnet101_thin.pth
    python demo/train_teacher.py --eval-only demo/weights/teacher_retinanet_r101_thin.pth

Weights go to --out as a plain dict(state_dict, meta), the log and the metrics to --results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import distributed, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.coco_names import ALL_CATEGORIES
from demo.evaluate import evaluate
from demo.make_data import make_split
from demo.scene_batches import SceneBatches
from demo.schedule import Progress, rate
from pipeline.mmdet_compat.ops.stand_in import install

ROOT = Path(__file__).resolve().parents[1]


def build(cfg: Config, backbone: Path | None) -> BaseModel:
    """The config's detector, initialised; its backbone from ``backbone`` where one is given."""
    install()  # before mmdet: stands in for mmcv's compiled operators
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    if backbone is not None:
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(backbone))
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(memory_format=torch.channels_last)


def classes_of(cfg: Config) -> tuple[str, ...]:
    """Category names in label order; mmdet's default is COCO's 80."""
    return tuple(cfg.metainfo.get("classes", ALL_CATEGORIES))


def average_gradients(model: BaseModel) -> None:
    """Mean of the processes' gradients, in one message."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def train_step(model: BaseModel, optimizer: torch.optim.Optimizer, batch: dict) -> dict[str, float]:
    """One optimiser step; returns the scalar losses of this process."""
    data = model.data_preprocessor(batch, training=True)
    data["inputs"] = data["inputs"].contiguous(memory_format=torch.channels_last)
    loss, losses = model.parse_losses(model(**data, mode="loss"))
    optimizer.zero_grad()
    loss.backward()
    average_gradients(model)
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def save(model: nn.Module, path: Path, meta: dict) -> None:
    """Write dict(state_dict, meta) of plain types: torch.load(weights_only=True) reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".part")
    torch.save(dict(state_dict=weights, meta=meta), temporary)
    temporary.replace(path)


class Log:
    """train_log.csv: losses as running means."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "train_log.csv").open("w", buffering=1)
        print("step,images,seconds,lr,loss_cls,loss_bbox", file=self.file)
        self.means = dict(loss_cls=0.0, loss_bbox=0.0)

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Take step ``step`` (from 1) into the means."""
        for name, value in self.means.items():
            self.means[name] = value + (losses[name] - value) / min(step, 50)

    def write(self, step: int, images: int, seconds: float, lr: float) -> None:
        """Append one row."""
        row = [step, images, round(seconds), f"{lr:.2e}", *(f"{value:.4f}" for value in self.means.values())]
        print(*row, sep=",", file=self.file)


def train(model: BaseModel, cfg: Config, args: argparse.Namespace, rank: int) -> int:
    """Train for ``args.steps`` steps, fewer if ``args.minutes`` are over (the rate then falls faster).

    Returns:
        The steps taken.
    """
    batches = SceneBatches(args.seed, args.steps * args.processes, args.batch_size, tuple(cfg.scale), classes_of(cfg))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.05)
    clock, log = Progress(args.steps, args.minutes), Log(args.results) if rank == 0 else None
    model.train()
    for step in range(args.steps):
        progress = torch.tensor(clock.at(step))
        distributed.broadcast(progress, 0)  # one clock, or the processes would stop at different steps
        if progress >= 1.0:
            return step
        lr = args.lr * rate(float(progress))
        optimizer.param_groups[0]["lr"] = lr
        losses = train_step(model, optimizer, batches[step * args.processes + rank])
        if log is None:
            continue
        done = step + 1
        log.add(done, losses)
        if done % 50 == 0:
            log.write(done, done * args.processes * args.batch_size, clock.seconds(), lr)
        if done % args.save_every == 0:
            save(model, args.out.with_suffix(".last"), dict(step=done))
    return args.steps


def run(rank: int, args: argparse.Namespace, rendezvous: str) -> None:
    """One training process: single-threaded, which on few cores is faster than one process on all of them."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=args.processes, init_method=rendezvous)
    torch.manual_seed(args.seed)  # the same initial weights everywhere
    cfg = Config.fromfile(args.config)
    model = build(cfg, args.backbone)
    steps = train(model, cfg, args, rank)
    distributed.destroy_process_group()
    if rank:
        return
    images = steps * args.batch_size * args.processes
    meta = dict(config=args.config.name, steps=steps, images=images, seed=args.seed)
    save(model, args.out, meta | dict(dataset_meta=dict(classes=list(classes_of(cfg)))))
    metrics = evaluate(model, cfg, args.data)
    (args.results / "metrics.json").write_text(json.dumps(meta | dict(val=metrics), indent=1) + "\n")
    print(json.dumps(metrics, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs/demo/teacher_retinanet_r101.py")
    parser.add_argument("--backbone", type=Path, help="by pretrain_backbone.py; without: from scratch")
    parser.add_argument("--out", type=Path, default=ROOT / "demo/weights/teacher_retinanet_r101_thin.pth")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/demo_teacher")
    parser.add_argument("--data", type=Path, default=ROOT / "work_dirs/demo/data", help="made if missing")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="stop by then, annealed, even before --steps")
    parser.add_argument("--processes", type=int, default=2, help="one core each")
    parser.add_argument("--batch-size", type=int, default=6, help="of one process")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=520)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints *.last")
    parser.add_argument("--eval-only", type=Path, help="measure these weights instead of training")
    args = parser.parse_args()

    if not (args.data / "annotations/instances_val.json").exists():
        make_split(args.data, "val", 100, categories=classes_of(Config.fromfile(args.config)))
    if args.eval_only:
        cfg = Config.fromfile(args.config)
        model = build(cfg, None)
        weights = torch.load(args.eval_only, map_location="cpu", weights_only=True)
        model.load_state_dict(weights["state_dict"], strict=True)
        print(json.dumps(evaluate(model, cfg, args.data), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        # Forked, not spawned: the children need no second import of everything.
        torch.multiprocessing.start_processes(run, (args, rendezvous), args.processes, start_method="fork")


if __name__ == "__main__":
    main()
