"""GFL R101 -> R50 on COCO, student 1x: the paper's second row.

Purpose   the table of arXiv 2111.00674 (teacher 44.9, student alone 40.2, FRS 43.6). Table and reference implementation
          both use the multi-scale 2x teacher; mmdet's zoo lists it at 44.7
Data      data/coco/{annotations,train2017,val2017} as in mmdet; set another folder with --cfg-options data_root=...
Commands  python stage1_cache_teacher.py --config configs/coco/gfl_r101_r50_1x.py
          python stage2_distill.py       --config configs/coco/gfl_r101_r50_1x.py --auto-scale-lr
          torchrun --nproc-per-node 8 stage2_distill.py --config ... --launcher pytorch
Views     two for each image (flip or not), so two passes cover any number of epochs exactly
Cache     not measured with a teacher trained on COCO; `plan` measures yours (docs/coco.md, "Disk")
Hours     about 4.4 for the teacher on one V100: 234,532 views at 68 ms (mmdet's zoo).
          `plan` measures it on your machine, and that of stage 2
Not run   this project has not measured the result of this config yet
"""

_base_ = "mmdet::gfl/gfl_r50_fpn_1x_coco.py"

teacher = dict(name="gfl_r101_fpn_ms-2x_coco", min_map=0.4, gate_images=500)
views = dict(seed=520, check="exact")
cache = dict(dir="work_dirs/coco/gfl_r101_ms2x/cache", batch_size=8, workers=8)
distill = dict(feature_weight=0.1, score_weight=0.05, warmup_iters=500)
randomness = dict(seed=520)
