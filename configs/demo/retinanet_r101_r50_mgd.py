"""Demo: distil the R50 student by MGD, from the same cache as PKD.

Weights   as in MGD's one-stage configs: 2e-5 for the squared error summed over a level, no score loss
"""

_base_ = "./retinanet_r101_r50_pkd.py"
distill = dict(feature_loss="mgd", feature_weight=2e-5)
work_dir = "work_dirs/demo/retinanet_r50_mgd"
