"""GFL R101 -> R50 on COCO, both multi-scale 2x: the paper's third row.

Purpose   the table of arXiv 2111.00674 (teacher 44.9, student alone 42.9, FRS 44.7). The reference implementation has
          no config of this row; the schedule is mmdet's gfl_r50_fpn_ms-2x_coco, the weights those of the 1x row
Data      data/coco/{annotations,train2017,val2017} as in mmdet; set another folder with --cfg-options data_root=...
Commands  python stage1_cache_teacher.py --config configs/coco/gfl_r101_r50_ms2x.py
          python stage2_distill.py       --config configs/coco/gfl_r101_r50_ms2x.py --auto-scale-lr
          torchrun --nproc-per-node 8 stage2_distill.py --config ... --launcher pytorch
Views     the short side is drawn from 480-800, so four seeded draws of each image are cached, and epoch e uses draw
          e mod 4. More draws (views.count) add passes of stage 1 and leave the others unchanged
Cache     not measured with a teacher trained on COCO; `plan` measures yours (docs/coco.md, "Disk")
Hours     at most 8.9 for the teacher on one V100: 469,064 views at 68 ms (mmdet's zoo, 1333x800; most draws are
          smaller). `plan` measures it on your machine, and that of stage 2
Not run   this project has not measured the result of this config yet
"""

_base_ = "mmdet::gfl/gfl_r50_fpn_ms-2x_coco.py"

teacher = dict(name="gfl_r101_fpn_ms-2x_coco", min_map=0.4, gate_images=500)
views = dict(seed=520, count=4, check="exact")
cache = dict(dir="work_dirs/coco/gfl_r101_ms2x_draws/cache", batch_size=8, workers=8)
distill = dict(feature_weight=0.1, score_weight=0.05, warmup_iters=500)
randomness = dict(seed=520)
