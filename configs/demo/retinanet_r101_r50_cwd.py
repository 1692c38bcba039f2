"""Demo: distil the R50 student by CWD, from the same cache as PKD.

Weights   as in mmrazor's cwd_fpn_retina_r101_retina_r50_1x_coco: 10 for each level, temperature 1
"""

_base_ = "./retinanet_r101_r50_pkd.py"
distill = dict(feature_loss="cwd")
work_dir = "work_dirs/demo/retinanet_r50_cwd"
