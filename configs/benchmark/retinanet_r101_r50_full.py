"""RetinaNet R101 -> R50 at full width, 640x480, with trained weights, for the speed of both stages.

Data:      python demo/make_data.py --out work_dirs/full/data --categories 80 --size 480 640 --train 64 --val 2
Teacher:   python benchmarks/widen.py --teacher work_dirs/benchmark/teacher.pth --out work_dirs/benchmark/teacher_wide.pth
Cache:     python stage1_cache_teacher.py --config configs/benchmark/retinanet_r101_r50_full.py
Then:      python benchmarks/step.py --config configs/benchmark/retinanet_r101_r50_full.py --turns 6 --steps 2
           python benchmarks/cache.py --config configs/benchmark/retinanet_r101_r50_full.py --codec-of work_dirs/full/cache --shards 1
Result     docs/results/speed.md
"""

_base_ = "../coco/retinanet_r101_r50_2x.py"

data_root = "work_dirs/full/data/"
scale = (800, 480)
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        pipeline=[
            dict(type="LoadImageFromFile", backend_args=None),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="Resize", scale=scale, keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        pipeline=[
            dict(type="LoadImageFromFile", backend_args=None),
            dict(type="Resize", scale=scale, keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

model = dict(backbone=dict(init_cfg=None))
teacher = dict(checkpoint="work_dirs/benchmark/teacher_wide.pth", min_map=0.0, gate_images=1)
cache = dict(dir="work_dirs/full/cache", workers=1, batch_size=2, shard_samples=16, calibration_views=24)
work_dir = "work_dirs/full/retinanet_r50"
