"""Demo: distil the R50 student by PKD instead of FRS, from a cache whose codec weights every position equally.

Purpose   one cache, several methods: the universal profile serves FRS (demo/retinanet_r101_r50.py), PKD and CWD
Commands  python stage1_cache_teacher.py --config configs/demo/retinanet_r101_r50_pkd.py
          python stage2_distill.py --config configs/demo/retinanet_r101_r50_pkd.py
Weights   as in mmrazor's pkd_fpn_retina_x101_retina_r50_2x_coco: 10 for each level, no score loss
"""

_base_ = "./retinanet_r101_r50.py"
cache = dict(dir="work_dirs/demo/cache_universal", codec=dict(profile="universal"))
distill = dict(feature_loss="pkd", feature_weight=10.0, score_weight=0.0)
work_dir = "work_dirs/demo/retinanet_r50_pkd"
