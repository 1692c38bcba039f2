"""Train the demo's teacher on newly rendered scenes, and measure it on the demo's val split.

    python demo/pretrain_backbone.py --depth 101 --out work_dirs/resnet101_thin.pth
    python demo/train_teacher.py --backbone work_dirs/resnet101_thin.pth
    python demo/train_teacher.py --eval-only demo/weights/teacher_retinanet_r101_thin.pth

Writes the weights to --out as a plain dict(state_dict, meta), and the log and the metrics to --results.
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
    """Build and initialise the config's detector, with the backbone's weights from ``backbone`` if it is given."""
    install()  # replaces mmcv's compiled operators, so it must run before mmdet is imported
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules()
    if backbone is not None:
        cfg.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(backbone))
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.to(memory_format=torch.channels_last)


def classes_of(cfg: Config) -> tuple[str, ...]:
    """Return the category names in label order. mmdet's default is COCO's 80."""
    return tuple(cfg.metainfo.get("classes", ALL_CATEGORIES))


def average_gradients(model: BaseModel) -> None:
    """Average the gradients of all processes, with one all-reduce."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))


def train_step(model: BaseModel, optimizer: torch.optim.Optimizer, batch: dict) -> dict[str, float]:
    """Run one optimiser step, and return the scalar losses of this process."""
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
    """Write dict(state_dict, meta) of plain types, which torch.load(weights_only=True) can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    temporary = path.with_suffix(".part")
    torch.save(dict(state_dict=weights, meta=meta), temporary)
    temporary.replace(path)


class Log:
    """Writes train_log.csv, with running means of the losses."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "train_log.csv").open("w", buffering=1)
        print("step,images,seconds,lr,loss_cls,loss_bbox", file=self.file)
        self.means = dict(loss_cls=0.0, loss_bbox=0.0)

    def add(self, step: int, losses: dict[str, float]) -> None:
        """Add the losses of step ``step`` (from 1) to the means."""
        for name, value in self.means.items():
            self.means[name] = value + (losses[name] - value) / min(step, 50)

    def write(self, step: int, images: int, seconds: float, lr: float) -> None:
        """Append one row."""
        row = [step, images, round(seconds), f"{lr:.2e}", *(f"{value:.4f}" for value in self.means.values())]
        print(*row, sep=",", file=self.file)


def train(model: BaseModel, cfg: Config, args: argparse.Namespace, rank: int) -> int:
    """Train for ``args.steps`` steps, or fewer if ``args.minutes`` are over. The learning rate always falls to 0.

    Returns:
        The number of steps.
    """
    batches = SceneBatches(args.seed, args.steps * args.processes, args.batch_size, tuple(cfg.scale), classes_of(cfg))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.05)
    clock, log = Progress(args.steps, args.minutes), Log(args.results) if rank == 0 else None
    model.train()
    for step in range(args.steps):
        progress = torch.tensor(clock.at(step))
        distributed.broadcast(progress, 0)  # all processes use one clock, so they stop at the same step
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
    """Run one training process with one thread. On few cores, this is faster than one process with all cores."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=args.processes, init_method=rendezvous)
    torch.manual_seed(args.seed)  # the same initial weights in all processes
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
    parser.add_argument("--backbone", type=Path, help="weights of pretrain_backbone.py (default: train from scratch)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo/weights/teacher_retinanet_r101_thin.pth")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/demo_teacher")
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "work_dirs/demo/data",
        help="folder of the data; the val split is made if missing",
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, help="time limit; the learning rate still falls to 0")
    parser.add_argument("--processes", type=int, default=2, help="one core each")
    parser.add_argument("--batch-size", type=int, default=6, help="batch size of one process")
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
        # Forked, so the children do not import all modules again.
        torch.multiprocessing.start_processes(run, (args, rendezvous), args.processes, start_method="fork")


if __name__ == "__main__":
    main()
