"""Views are pure functions; replays are recognised; what cannot be replayed is refused by name."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.shard_plan import mix, plan_pass, references, view_of
from pipeline.config import load_config
from pipeline.data.images import Images
from pipeline.data.replay import check_replay, library_versions
from pipeline.data.schedule import epoch_batches, take_share
from pipeline.data.shard_planning import plan_views
from pipeline.data.views import Views, padded
from pipeline.errors import ConfigError, DataError, ReplayMismatch, ViewError
from pipeline.records import FLIPS, SampleRef, ViewRecord

LOAD, PACK = {"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}
BOXES = {"type": "LoadAnnotations", "with_bbox": True}
RESIZE, FLIP = {"type": "Resize", "scale": (128, 64), "keep_ratio": True}, {"type": "RandomFlip", "prob": 0.5}
CHOICE = {"type": "RandomChoiceResize", "scales": [(128, 64), (160, 96)], "keep_ratio": True}
RANGE = {"type": "RandomResize", "scale": [(128, 48), (128, 96)], "keep_ratio": True}
COLOUR = {"type": "PhotoMetricDistortion"}
CROP = {"type": "RandomCrop", "crop_size": (48, 48)}
CENTER = {
    "crop_size": (64, 64),
    "ratios": (0.6, 1.0),
    "test_pad_mode": None,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "to_rgb": True,
    "border": 16,
}
BY_BOXES = {  # pipelines of mmdet's zoo whose boxes decide the result
    "large-scale jitter": (RANGE, CROP, {"type": "FilterAnnotations", "min_gt_bbox_wh": (1e-2, 1e-2)}, FLIP),
    "detr": (FLIP, {"type": "RandomChoice", "transforms": [[CHOICE], [CHOICE, {**CROP, "allow_negative_crop": True}]]}),
    "ssd": ({"type": "Expand"}, {"type": "MinIoURandomCrop", "min_crop_size": 0.3}, RESIZE, FLIP, COLOUR),
    "centernet": ({"type": "RandomCenterCropPad", **CENTER}, RESIZE),
    "apply": ({"type": "RandomApply", "transforms": [CROP], "prob": 0.5}, {"type": "Pad", "size_divisor": 32}),
}


def pipeline(*steps: dict) -> list[dict]:
    return [LOAD, BOXES, *steps, PACK]


@pytest.fixture(scope="module")
def images(made: dict[str, Path]) -> Images:
    cfg, _ = load_config(str(made["lossless"]))
    return Images(cfg.train_dataloader.dataset)


def test_finite_views_are_counted() -> None:
    assert Views(pipeline(RESIZE), 0, None).count == 1
    assert Views(pipeline(RESIZE, FLIP), 0, None).count == 2
    assert Views(pipeline(CHOICE, FLIP), 0, None).count == 4

    assert Views(pipeline(RESIZE, {**FLIP, "prob": 1.0}), 0, None).count == 1
    with pytest.raises(ConfigError, match=r"views.count.*RandomResize"):
        Views(pipeline(RANGE, FLIP), 0, None)
    with pytest.raises(ConfigError, match=r"views.count.*RandomFlip"):
        Views(pipeline(RESIZE, {**FLIP, "prob": 0.3}), 0, None)
    with pytest.raises(ConfigError, match="have 2 views"):
        Views(pipeline(RESIZE, FLIP), 0, 3)


def test_the_rule_in_words() -> None:
    def rule(*steps: dict, count: int | None = None) -> str:
        return Views(pipeline(*steps), 0, count).recognised

    assert rule(RESIZE) == "1 distinct view: resize 128x64"
    assert rule(RESIZE, {**FLIP, "prob": 0.0}) == rule(RESIZE)
    assert rule(RESIZE, FLIP) == "2 distinct views: resize 128x64 x flip"
    assert rule(CHOICE, FLIP) == "4 distinct views: resize 128x64 or 160x96 x flip"
    assert rule(RANGE, FLIP, COLOUR, count=3) == "3 seeded draws: RandomResize x flip x PhotoMetricDistortion"


@pytest.mark.parametrize("name", ["Mosaic", "MixUp", "CachedMosaic", "CopyPaste"])
def test_mixing_transforms_are_named(name: str) -> None:
    with pytest.raises(ViewError, match=f"{name}: mixes images"):
        Views(pipeline({"type": name}, RESIZE), 0, None)


def test_unknown_transforms_are_named() -> None:
    with pytest.raises(ViewError, match="MyAugmentation"):
        Views(pipeline({"type": "MyAugmentation"}), 0, None)


def test_finite_views_are_all_different(images: Images) -> None:
    views = Views(pipeline(CHOICE, FLIP), 0, None)
    info = images.info(images.ids[0])
    records = [views.replay(info, v)[2] for v in range(4)]
    assert len({r.pixels for r in records}) == 4
    assert {(FLIPS[r.flip], r.shape) for r in records} == {
        (flip, shape) for flip in ("none", "horizontal") for shape in {r.shape for r in records}
    }


@pytest.mark.parametrize("steps", [(RESIZE, FLIP), (RANGE, FLIP, COLOUR)], ids=["finite", "drawn"])
def test_replay_depends_on_nothing_else(images: Images, steps: tuple[dict, ...]) -> None:
    count = None if RANGE not in steps else 3
    first = Views(pipeline(*steps), 7, count)
    wanted = {(i, v): first.replay(images.info(i), v)[2] for i in images.ids[:4] for v in range(first.count)}
    second = Views(pipeline(*steps), 7, count)
    for image, view in sorted(wanted, reverse=True):
        np.random.seed(image)
        random.seed(view)
        before = np.random.get_state()[1].copy()
        pixels, sample, record = second.replay(images.info(image), view)
        assert dataclasses.replace(record, thumbnail=None) == dataclasses.replace(wanted[image, view], thumbnail=None)
        assert (np.random.get_state()[1] == before).all(), "the caller's generators must not move"
        assert record.pad_shape == second.pad_shape(images.info(image), view) == padded(pixels.shape[1:])
        assert sample.metainfo["flip"] == (record.flip != 0)


@pytest.mark.parametrize("name", BY_BOXES)
def test_replay_by_boxes(images: Images, name: str) -> None:
    """The planned size is that of the view, a second replay is equal to the bit, views without boxes have no size."""
    steps = [{**LOAD, "to_float32": name == "centernet"}, *pipeline(*BY_BOXES[name])[1:]]
    first, second = (Views(steps, 7, 4) for _ in range(2))
    found = 0
    for image in images.ids:
        for view in range(4):
            np.random.seed(image)
            planned = first.pad_shape(images.info(image), view)
            if planned is None:
                with pytest.raises(DataError, match=f"image {image} .*, view {view}: no box is left"):
                    second.replay(images.info(image), view)
                continue
            found += 1
            pixels, sample, record = second.replay(images.info(image), view)
            again, same, repeated = first.replay(images.info(image), view)
            assert planned == record.pad_shape == padded(pixels.shape[1:])
            assert torch.equal(pixels, again) and record.boxes == repeated.boxes
            assert torch.equal(sample.gt_instances.bboxes.tensor, same.gt_instances.bboxes.tensor)
    assert found > len(images)


def test_a_view_without_boxes_is_left_out_of_the_plan(images: Images) -> None:
    tall = {"type": "FilterAnnotations", "min_gt_bbox_wh": (1, 30)}  # in pixels: some images have no such box
    views = Views(pipeline(tall, RESIZE), 0, None)
    heights = {i: max(b["bbox"][3] - b["bbox"][1] for b in images.info(i)["instances"]) for i in images.ids}
    layout = {"batch_size": 2, "shard_samples": 4, "seed": 0}

    planned = {image for shard in plan_views(images, views, 0, layout) for image, _, _ in shard.samples}

    assert planned == {image for image, height in heights.items() if height > 30}
    assert 0 < len(planned) < len(images)
    with pytest.raises(ViewError, match="no view of pass 0 has a box left"):
        plan_views(images, Views(pipeline({**tall, "min_gt_bbox_wh": (999, 999)}), 0, None), 0, layout)


def test_transforms_inside_a_choice_are_checked() -> None:
    def choice(*steps: dict) -> dict:
        return {"type": "RandomChoice", "transforms": [[RESIZE], list(steps)]}

    assert Views(pipeline(choice(RANGE, CROP)), 0, 2).recognised == "2 seeded draws: RandomChoice"
    with pytest.raises(ConfigError, match=r"views.count.*RandomChoice"):
        Views(pipeline(choice(RESIZE)), 0, None)
    with pytest.raises(
        ViewError, match=r"transform Mosaic: mixes images, .*; remove Mosaic from the wrapper that holds it"
    ):
        Views(pipeline(choice({"type": "Mosaic"})), 0, 2)
    with pytest.raises(ViewError, match="transform Albu: not known"):
        Views(pipeline(choice({"type": "RandomApply", "transforms": [{"type": "Albu"}]})), 0, 2)
    with pytest.raises(ViewError, match="expected LoadImageFromFile"):
        Views(pipeline(choice(LOAD)), 0, 2)


def test_a_mixing_pipeline_is_refused_with_one_that_replays() -> None:
    """The suggestion is a pipeline of the same transforms; without its mixing ones it is accepted."""
    rtmdet = [{"type": "CachedMosaic"}, RANGE, CROP, {"type": "YOLOXHSVRandomAug"}, FLIP, {"type": "CachedMixUp"}]
    rest = "LoadImageFromFile -> LoadAnnotations -> RandomResize -> RandomCrop -> YOLOXHSVRandomAug -> RandomFlip"
    with pytest.raises(ViewError, match=f"remove CachedMosaic and CachedMixUp, for example {rest} -> PackDetInputs"):
        Views(pipeline(*rtmdet), 0, None)
    assert Views(pipeline(*(t for t in rtmdet if "Cached" not in t["type"])), 0, 2).count == 2


def test_record_round_trip(images: Images) -> None:
    record = Views(pipeline(RESIZE, FLIP), 0, None).replay(images.info(images.ids[0]), 1)[2]
    levels = ((8, 12), (4, 6), (2, 3))
    again, shapes = ViewRecord.from_row(record.row(levels), record.thumbnail)
    assert shapes == levels
    assert dataclasses.replace(again, thumbnail=None) == dataclasses.replace(record, thumbnail=None)


def test_every_difference_is_refused(images: Images) -> None:
    views = Views(pipeline(RESIZE, FLIP), 0, None)
    record = views.replay(images.info(images.ids[0]), 0)[2]
    flipped = views.replay(images.info(images.ids[0]), 1)[2]
    check_replay(record, record, "exact", 0, library_versions())
    for name, value in [("pixels", 1), ("boxes", 1), ("flip", 1), ("shape", (1, 1)), ("ori_shape", (1, 1))]:
        changed = dataclasses.replace(record, **{name: value})
        with pytest.raises(ReplayMismatch, match=f"image {record.image_id}, view 0: {name}"):
            check_replay(record, changed, "exact", 0, library_versions())
    with pytest.raises(ReplayMismatch, match=r"opencv-python-headless 0.1 -> \d"):
        check_replay(record, dataclasses.replace(record, pixels=1), "exact", 0, {"opencv-python-headless": "0.1"})
    slightly = dataclasses.replace(record, pixels=1)
    check_replay(record, slightly, "close", 8.0, library_versions())
    other = dataclasses.replace(record, thumbnail=255 - flipped.thumbnail)
    with pytest.raises(ReplayMismatch, match="thumbnails differ"):
        check_replay(record, other, "close", 8.0, library_versions())


def test_a_changed_image_file_is_noticed(images: Images, tmp_path: Path) -> None:
    import cv2

    views = Views(pipeline(RESIZE), 0, None)
    info = dict(images.info(images.ids[0]))
    record = views.replay(info, 0)[2]
    picture = cv2.imread(info["img_path"])
    picture[0, 0] ^= 64
    info["img_path"] = str(tmp_path / "changed.png")
    cv2.imwrite(info["img_path"], picture)
    assert views.replay(info, 0)[2].pixels != record.pixels


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 6))
def test_passes_show_every_view_once(image: int, count: int) -> None:
    assert sorted(view_of(image, p, count) for p in range(count)) == list(range(count))


def test_the_hash_is_part_of_the_format() -> None:
    assert [mix(0), mix(1), mix(520, 3)] == [16294208416658607535, 10451216379200822465, 493652371936585293]
    flips = [view_of(i, 0, 2) for i in range(1000)]
    assert 430 < sum(flips) < 570


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=80),
    st.integers(1, 4),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_a_plan_holds_every_image_once(shapes: list, batch: int, shard: int, seed: int) -> None:
    pads = {n: (h * 32, w * 32) for n, (h, w) in enumerate(shapes)}
    shards = plan_pass(pads, 0, 2, lambda image, view: pads[image], batch, shard, seed)
    assert sorted(image for s in shards for image, _, _ in s.samples) == sorted(pads)
    for planned in shards:
        assert len(planned.samples) <= max(shard, batch)
        areas = [h * w for _, _, (h, w) in planned.samples]
        assert max(areas) <= 1.25 * min(areas)
        assert len({w >= h for _, _, (h, w) in planned.samples}) == 1
        for pad, members in planned.batches:
            assert len(members) <= batch and {pads[image] for image, _ in members} == {pad}
    assert shards == plan_pass(reversed(list(pads)), 0, 2, lambda i, v: pads[i], batch, shard, seed)
    refs = references(shards, 0)
    assert [len(r) for r in refs] == [len(s.samples) for s in shards]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_is_exact(sizes: list[int], batch: int, world: int, epoch: int) -> None:
    shards, image = [], 0
    for number, size in enumerate(sizes):
        pad = (64, 96) if number % 2 else (96, 64)
        shards.append([SampleRef(0, number, i, image + i, 0, pad) for i in range(size)])
        image += size
    batches = epoch_batches(shards, 520, epoch, batch)
    assert sorted(ref.image_id for b in batches for ref in b) == list(range(image))
    assert all(len({ref.landscape for ref in b}) == 1 and len(b) <= batch for b in batches)
    assert batches == epoch_batches(shards, 520, epoch, batch)
    for whole in batches:
        parts = [take_share(whole, rank, world) for rank in range(world)]
        together = [ref for part in parts for ref in part]
        assert all(parts) and set(together) == set(whole)
        assert len(together) == len(whole) or len(whole) < world  # nothing is repeated but to give every rank a sample
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_epochs_differ() -> None:
    shards = [[SampleRef(0, n, i, n * 8 + i, 0, (32, 64)) for i in range(8)] for n in range(6)]
    first, second = (epoch_batches(shards, 0, epoch, 4) for epoch in range(2))
    assert first != second
    assert torch.tensor([len(b) for b in first]).eq(4).all()
