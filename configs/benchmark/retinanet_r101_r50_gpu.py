"""RetinaNet R101 -> R50 at full width, every view 800x1333, batches of 8, for benchmarks/gpu.py.

`make gpu` makes data, teacher and cache. The teacher is the demo's, widened to mmdet's R101 (benchmarks/widen.py).
Result     docs/results/gpu.md
"""

_base_ = "./retinanet_r101_r50_full.py"

data_root = "work_dirs/gpu/data/"
resize = dict(type="Resize", scale=(1333, 800), keep_ratio=False)  # one shape, that of nearly all COCO images
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type="LoadImageFromFile", backend_args=None),
            dict(type="LoadAnnotations", with_bbox=True),
            resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        pipeline=[
            dict(type="LoadImageFromFile", backend_args=None),
            resize,
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

teacher = dict(checkpoint="work_dirs/gpu/teacher.pth", min_map=0.0, gate_images=1)
cache = dict(dir="work_dirs/gpu/cache", workers=8, batch_size=8, shard_samples=32, passes=1, calibration_views=32)
work_dir = "work_dirs/gpu/retinanet_r50"
