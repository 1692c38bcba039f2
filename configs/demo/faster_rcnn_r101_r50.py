"""Demo: distil a thin Faster R-CNN R101 into a thin Faster R-CNN R50 on the demo's 300 images.

Teacher:   run the command of configs/demo/teacher_faster_rcnn_r101.py first
Commands:  python stage1_cache_teacher.py --config configs/demo/faster_rcnn_r101_r50.py
           python stage2_distill.py --config configs/demo/faster_rcnn_r101_r50.py
"""

_base_ = ["./teacher_faster_rcnn_r101.py", "./student.py"]

model = dict(backbone=_base_.thin_r50)
teacher = dict(
    config="configs/demo/teacher_faster_rcnn_r101.py",
    checkpoint="work_dirs/families/faster_rcnn.pth",
    min_map=0.1,
    gate_images=50,
)
cache = dict(dir="work_dirs/families/faster_rcnn_cache")
distill = dict(feature_weight=0.001, score_weight=0.1, warmup_iters=300)

train_dataloader = dict(batch_size=4, num_workers=1)
work_dir = "work_dirs/families/faster_rcnn_r50"
