"""FCOS R101 -> R50 on COCO, both 2x on two scales: the paper's fifth row.

Purpose   the table of arXiv 2111.00674 (teacher 40.8, student alone 38.5, FRS 40.9); caffe-style backbones,
          group-normed heads
Data      data/coco/{annotations,train2017,val2017} as in mmdet; set another folder with --cfg-options data_root=...
Commands  python stage1_cache_teacher.py --config configs/coco/fcos_r101_r50_ms2x.py
          python stage2_distill.py       --config configs/coco/fcos_r101_r50_ms2x.py --auto-scale-lr
          torchrun --nproc-per-node 8 stage2_distill.py --config ... --launcher pytorch
Views     four for each image (short side 640 or 800, flip or not): four passes cover any number of epochs exactly
Cache     not measured with a teacher trained on COCO; `plan` measures yours (docs/coco.md, "Disk")
Hours     at most 7.6 for the teacher on one V100: 469,064 views at 58 ms (mmdet's zoo, 1333x800; half of the views are
          smaller). `plan` measures it on your machine, and that of stage 2
Not run   this project has not measured the result of this config yet
"""

_base_ = "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco.py"

teacher = dict(name="fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco", min_map=0.36, gate_images=500)
views = dict(seed=520, check="exact")
cache = dict(dir="work_dirs/coco/fcos_r101_ms2x/cache", batch_size=8, workers=8)
distill = dict(feature_weight=0.01, score_weight=0.05, warmup_iters=500)
randomness = dict(seed=520)
