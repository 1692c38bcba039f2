"""Demo: the thin RetinaNet pair with four views of each image (two scales, flipped or not).

Purpose   measure the effect of more views of an image (benchmarks/views_accuracy.py, docs/results/views.md)
Commands  python stage1_cache_teacher.py --config configs/demo/retinanet_r101_r50_ms.py
          python stage2_distill.py --config configs/demo/retinanet_r101_r50_ms.py
"""

_base_ = "./retinanet_r101_r50.py"

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile", backend_args=None),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="RandomChoiceResize", scales=[(288, 192), (240, 160)], keep_ratio=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ]
    )
)
cache = dict(dir="work_dirs/demo/cache_ms")
work_dir = "work_dirs/demo/retinanet_r50_ms"
