"""Compare losses and gradients of a student between a cached and a live teacher, for four detector families.

python benchmarks/sameness.py --json docs/results/sameness.json

Uses the code of both stages on the demo's data. Stage 1 makes the caches in --work, batches come from stage 2's stream,
and the students are trained by the commands in configs/demo/. Two other methods are measured for comparison: padding
the whole batch, and flipping outputs instead of caching the flipped view.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from pipeline.config import load_config
from pipeline.data.stream import Stream
from pipeline.mmdet_compat.registry import MODELS, Config, build
from pipeline.records import TeacherOutput
from pipeline.stage2.distiller import Distiller
from pipeline.stage2.runner import wrap_student
from pipeline.stage2.teacher_data import TeacherData, prepare_teacher_data
from pipeline.stage2.teacher_source import LiveTeacher, TeacherSource
from pipeline.teacher.model import Teacher, own_device
from pipeline.teacher.weights import load_plain

FAMILIES = ("retinanet", "gfl", "fcos", "faster_rcnn")
COLUMNS = ["family", "teacher", "loss_features", "loss_scores", "gradient", "batches"]


class WholeBatch(LiveTeacher):
    """The reference implementation's method: pad every view to the batch's size, and use all positions in the loss."""

    def output(self, taken: list[Tensor]) -> TeacherOutput:
        return self.teacher.padded_together(taken)


class Flipped(LiveTeacher):
    """Outputs of the mirrored view, mirrored back. This is the result of flipping the content of a cache."""

    def output(self, taken: list[Tensor]) -> TeacherOutput:
        exact = self.teacher.by_shape(taken)
        mirrored = self.teacher.by_shape([view.flip(2) for view in taken])
        for b, view in enumerate(taken):
            for y, t, m in zip(mirrored.features, mirrored.scores, mirrored.frs):
                stride = 2 ** round(torch.tensor(max(v.shape[2] for v in taken) / y.shape[-1]).log2().item())
                columns = -(-view.shape[2] // stride)  # columns of the image; the padding stays on the right
                for tensor in (y[b], t[b], m[b]):
                    tensor[..., :columns] = tensor[..., :columns].flip(-1)
        assert mirrored.levels == exact.levels
        return mirrored


def gradients(model: Distiller, batch: dict[str, Any]) -> tuple[dict[str, float], list[Tensor]]:
    """Return both weighted losses, and the gradient of their sum on the student's trained parameters."""
    losses = model(**model.data_preprocessor(batch, True), mode="loss")
    own = {name: losses[name] for name in ("loss_frs_feature", "loss_frs_score")}
    parameters = [p for p in model.student.parameters() if p.requires_grad]
    found = torch.autograd.grad(list(own.values()), parameters, allow_unused=True)
    return {name: float(loss.detach()) for name, loss in own.items()}, [g for g in found if g is not None]


def load_distiller(cfg: Config, teacher_data: TeacherData, source: TeacherSource, sections: Any) -> Distiller:
    """Load the trained student of a config. Evaluation mode makes batch norms independent of other batches."""
    student = build(MODELS, cfg.model, "model")
    model = wrap_student(student, replace(teacher_data, teacher=source), sections.distill)
    found = load_plain(Path(cfg.work_dir) / "epoch_8.pth")
    student.load_state_dict(found["state_dict"])
    model.adapters.load_state_dict(found["frs"]["adapters"])
    model.iteration = sections.distill.warmup_iters
    return model.to(own_device()).eval()


def sources(path: str, work: Path, family: str) -> Iterator[tuple[str, dict[str, Any], type[LiveTeacher] | None]]:
    """Yield (name, config options, class of the live teacher or None for a cache). The exact live teacher is first."""
    yield "live", {"teacher.source": "live"}, LiveTeacher
    for codec in ("lossless", "frs"):
        options = {"cache.codec.type": codec, "cache.dir": str(work / family / codec)}
        values = [f"{key}={value}" for key, value in options.items()]
        common.run(["stage1_cache_teacher.py", "--config", path, "--cfg-options", *values])
        yield codec, options, None
    yield "whole-batch padding", {"teacher.source": "live"}, WholeBatch
    yield "flipped outputs", {"teacher.source": "live"}, Flipped


def rows_of(family: str, work: Path, batches: int, batch_size: int) -> list[dict[str, Any]]:
    """Compare every source with the live teacher, and return a row for each."""
    path = f"configs/demo/{family}_r101_r50.py"
    exact: list[tuple[dict[str, float], list[Tensor]]] = []
    rows = []
    for name, options, kind in sources(path, work, family):
        cfg, sections = load_config(path, options)
        teacher_data = prepare_teacher_data(cfg, sections)
        source = teacher_data.teacher if kind is None else kind(live_of(teacher_data))
        model = load_distiller(cfg, teacher_data, source, sections)
        stream = Stream(teacher_data.stream, batch_size, seed=0)
        found = [gradients(model, batch) for batch in islice(iter(stream), batches)]
        exact = exact or found
        rows.append({"family": family, "teacher": name, "batches": len(found), **compare(exact, found)})
        print(common.table(rows[-1:], COLUMNS).splitlines()[1], flush=True)
    return rows[1:]


def live_of(teacher_data: TeacherData) -> Teacher:
    """Return the live teacher of teacher data."""
    assert isinstance(teacher_data.teacher, LiveTeacher)
    return teacher_data.teacher.teacher


def compare(exact: list[Any], found: list[Any]) -> dict[str, float]:
    """Return the largest relative difference of the losses, and the mean relative L2 difference of the gradients."""
    worst = {"loss_frs_feature": 0.0, "loss_frs_score": 0.0}
    errors = []
    for (losses, gradient), (other, changed) in zip(exact, found):
        for name, value in losses.items():
            worst[name] = max(worst[name], abs(other[name] - value) / abs(value))
        change = sum(float((a - b).double().square().sum()) for a, b in zip(gradient, changed))
        errors.append((change / sum(float(a.double().square().sum()) for a in gradient)) ** 0.5)
    return {
        "loss_features": worst["loss_frs_feature"],
        "loss_scores": worst["loss_frs_score"],
        "gradient": sum(errors) / len(errors),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parser.add_argument("--work", type=Path, default=Path("work_dirs/sameness"))
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    common.quiet()
    rows: list[dict[str, Any]] = []
    for family in args.families:
        rows += rows_of(family, args.work.resolve(), args.batches, args.batch_size)
        common.write(args.json, rows, batch_size=args.batch_size)
    print(common.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
