"""Faster R-CNN R101 -> R50 on COCO, 1x: the paper's fourth row.

Purpose   the table of arXiv 2111.00674 (teacher 39.4, student alone 37.4, FRS 39.5). The table says 1x for both, the
          reference implementation's config 2x for both; this config follows the table
Scores    the RPN's objectness on P2-P6 (3 for each position), never the RoI head's scores
Data      data/coco/{annotations,train2017,val2017} as in mmdet; set another folder with --cfg-options data_root=...
Commands  python stage1_cache_teacher.py --config configs/coco/faster_rcnn_r101_r50_1x.py
          python stage2_distill.py       --config configs/coco/faster_rcnn_r101_r50_1x.py --auto-scale-lr
          torchrun --nproc-per-node 8 stage2_distill.py --config ... --launcher pytorch
Views     two for each image (flip or not), so two passes cover any number of epochs exactly
Cache     not measured with a teacher trained on COCO; `plan` measures yours (docs/coco.md, "Disk")
Hours     at most 4.2 for the teacher on one V100: 234,532 views at 64 ms (mmdet's zoo, with the RoI head, which stage 1
          does not run). `plan` measures it on your machine, and that of stage 2
Not run   this project has not measured the result of this config yet
"""

_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

teacher = dict(name="faster-rcnn_r101_fpn_1x_coco", min_map=0.35, gate_images=500)
views = dict(seed=520, check="exact")
cache = dict(dir="work_dirs/coco/faster_rcnn_r101_1x/cache", batch_size=8, workers=8)
distill = dict(feature_weight=0.002, score_weight=0.1, warmup_iters=500)
randomness = dict(seed=520)
