"""A cache of one shard whose samples have different grids, some with an empty map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.canonical import digest, read_json
from pipeline.cache.shard_plan import ShardPlan
from pipeline.cache.versions import VERSION
from pipeline.codecs.base import Codec
from pipeline.codecs.group import load_codec, save_codec
from pipeline.codecs.packing import stack
from pipeline.codecs.registry import calibrate_codec, read_options
from pipeline.records import LevelShapes, TeacherOutput, ViewRecord
from pipeline.stage1.encode import encode_views
from pipeline.stage1.shard import new_shard
from pipeline.stage1.target import ShardTarget
from tests.helpers.outputs import weighted_error
from tests.helpers.related import RelatedSample, related_output

# Grids of one shard that is mixed on purpose: neither P nor P4 is the same, and only one has sides that are no
# multiples of 4 on every level.
GRIDS: dict[tuple[int, int], LevelShapes] = {
    (72, 104): ((9, 13), (5, 7), (3, 4), (1, 2)),
    (80, 96): ((10, 12), (5, 6), (3, 3), (2, 2)),
    (64, 96): ((8, 12), (4, 4), (4, 4), (1, 1)),
}
CHANNELS, SCORE_CHANNELS = 6, 10
PADS = list(GRIDS)
PLAN = ShardPlan(((PADS[0], ((1, 0), (2, 1))), (PADS[1], ((3, 0),)), (PADS[2], ((4, 3), (5, 2)))))
QUALITY: dict[str, dict[str, Any]] = {"frs": {"quality": 0.01}, "frs2": {"quality": 0.03}}
EMPTY, UNUSUAL = 3, 4  # images without any score, and with features that no prediction fits


class PlannedTeacher:
    """Replaces teacher and loader: batches of seeded numbers on the grids of GRIDS."""

    def __init__(self, plan: ShardPlan) -> None:
        self._plan = plan

    def levels(self, pad: tuple[int, int]) -> LevelShapes:
        return GRIDS[pad]

    def batches(self) -> Iterator[tuple[Any, list[Any], list[ViewRecord]]]:
        for pad, batch in self._plan.batches:
            thumbnail = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
            records = [ViewRecord(i, v, pad, (480, 640), pad, v, 2**32 - i, 7, thumbnail) for i, v in batch]
            yield (pad, batch), [(pad, image) for image, _ in batch], records

    def __call__(self, views: list[tuple[tuple[int, int], int]]) -> TeacherOutput:
        generator = torch.Generator().manual_seed(views[0][1])
        features, scores = [], []
        for height, width in GRIDS[views[0][0]]:
            features.append(torch.randn(len(views), CHANNELS, height, width, generator=generator) * 5 + 1)
            # From all but 1 down to far below the map's grid.
            scores.append(torch.rand(len(views), SCORE_CHANNELS, height, width, generator=generator) ** 8)
            scores[-1][:, :, : height // 2] *= 1e-6
        scores[-1][0] = 0  # a level without any score
        if views[0][1] == EMPTY:
            scores = [torch.zeros_like(t) for t in scores]  # a sample without any
        return TeacherOutput(features, scores, [t.amax(dim=1) for t in scores])


class RelatedTeacher(PlannedTeacher):
    """The same plan, with levels that resemble each other and scores that follow from the features."""

    def __call__(self, views: list[tuple[tuple[int, int], int]]) -> TeacherOutput:
        pad, image = views[0]
        made = related_output(len(views), list(GRIDS[pad]), CHANNELS, SCORE_CHANNELS, image)
        signs = [-1 if image == UNUSUAL and level % 2 else 1 for level in range(len(made.features))]
        scores = [t * (image != EMPTY) for t in made.scores]
        scores[-1][0] = 0  # a level without any score
        features = [sign * y for sign, y in zip(signs, made.features)]
        return TeacherOutput(features, scores, [t.amax(dim=1) for t in scores])


class PlannedSample:
    """The same batches to calibrate on; the error is that of the weighted tensors."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def outputs(self, part: str) -> Iterator[TeacherOutput]:
        for _, views, _ in self._teacher.batches():
            if views[0][1] != EMPTY:
                yield self._teacher(views)

    def probes(self, part: str, losses: Sequence[str], near: bool = False) -> Iterator[Any]:
        for exact in self.outputs(part):
            yield exact, lambda coded, exact=exact: {loss: weighted_error(loss, coded, exact) for loss in losses}

    def unexplained(self, what: str, near: bool = False) -> float:
        return 0.1 if near else 0.4


def calibrate_mixed(settings: dict[str, Any], teacher: Any) -> Codec:
    """Calibrate a codec on the teacher's batches; frs2 on more views of related outputs."""
    kind = settings["type"]
    options = read_options({**QUALITY.get(kind, {}), **settings})
    if kind == "frs2":
        sample = RelatedSample(CHANNELS, SCORE_CHANNELS, list(GRIDS[PADS[0]]), views=24)
        codec = calibrate_codec(options, sample)
        return replace(codec, tables={name: shorten(table) for name, table in codec.tables.items()})
    return calibrate_codec(options, PlannedSample(teacher))


def shorten(table: np.ndarray) -> np.ndarray:
    """Return a table with 4 bits of mantissa where it has float16: the golden files are half as large."""
    return (table.view(np.uint16) & 0xFFC0).view(np.float16) if table.dtype == np.float16 else table


def make_mixed(root: Path, settings: dict[str, Any], version: int = VERSION, plan: ShardPlan = PLAN) -> Path:
    """Write a cache folder of one shard whose samples have different grids, some with a map of zeros."""
    settings = {"type": "frs", **settings}
    teacher: Any = (RelatedTeacher if settings["type"] == "frs2" else PlannedTeacher)(plan)
    codec = calibrate_mixed(settings, teacher)
    save_codec(codec, root, {"views": 5})
    identity = {"pass": 0, "shard": 0, "plan": "plan", "recipe": "recipe"}
    tar = root / "pass-0" / "shard-00000.tar"
    codec_digest = digest(read_json(root / "codec.json"))
    levels = [GRIDS[pad] for _, _, pad in plan.samples]
    with new_shard(ShardTarget(tar, version, identity, codec, codec_digest, plan, levels)) as shard:
        for _, views, records in teacher.batches():
            shard.add(encode_views(codec, teacher(views), records))
        shard.commit()
    return root


def codec_of(cache: Path) -> Codec:
    """Open the codec of a cache folder."""
    return load_codec(cache, read_json(cache / "codec.json"))


def decoded(codec: Codec, arrays: dict[str, np.ndarray]) -> list[list[Tensor]]:
    """Decode one sample with the codec. Returns features, scores and map, each a list of levels."""
    stored = dict(arrays)
    _, levels = ViewRecord.from_row(stored.pop("record"), stored.pop("thumbnail", np.zeros(0)))
    if codec.name == "frs2":  # the arrays of version 1, which has none of it, are padded
        stored = codec.read_sample(stored, levels)
    output = codec.decode(stack([stored], [levels]))
    return [[t[0] for t in tensors] for tensors in (output.features, output.scores, output.frs)]
