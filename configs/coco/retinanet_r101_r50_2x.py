"""RetinaNet R101 -> R50 on COCO, 2x: the paper's first row.

Purpose   the table of arXiv 2111.00674 (teacher 38.9, student alone 37.4, FRS 39.7). The table's teacher is mmdet's 2x
          model; the reference implementation's config names the 1x one (38.5). This config follows the table.
Data      data/coco/{annotations,train2017,val2017} as in mmdet; set another folder with --cfg-options data_root=...
Commands  python stage1_cache_teacher.py --config configs/coco/retinanet_r101_r50_2x.py
          torchrun --nproc-per-node 8 stage1_cache_teacher.py --config ...   (several GPUs share the shards)
          python stage2_distill.py       --config configs/coco/retinanet_r101_r50_2x.py --work-dir work_dirs/r50 --amp --auto-scale-lr
          torchrun --nproc-per-node 8 stage2_distill.py --config ... --launcher pytorch
Views     two for each image (flip or not), so two passes cover any number of epochs exactly
Cache     about 13 GB at `balanced` (55 kB a view), extrapolated from a RetinaNet R18 with rich features
          (docs/results/probe.md); `plan` measures yours
Hours     about 4.4 for the teacher on one V100: 234,532 views at 67 ms (mmdet's zoo).
          `plan` measures it on your machine, and that of stage 2
Not run   this project has not measured the result of this config yet
"""

_base_ = "mmdet::retinanet/retinanet_r50_fpn_2x_coco.py"

teacher = dict(name="retinanet_r101_fpn_2x_coco", min_map=0.35, gate_images=500)
views = dict(seed=520, check="exact")
cache = dict(dir="work_dirs/coco/retinanet_r101_2x/cache", batch_size=8, workers=8)
distill = dict(feature_weight=0.005, score_weight=0.02, warmup_iters=500)
randomness = dict(seed=520)
