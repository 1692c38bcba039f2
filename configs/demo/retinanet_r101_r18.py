"""Demo: a second student with another depth and FPN width, from the same cache. Stage 1 is not run again."""

_base_ = "./retinanet_r101_r50.py"
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=48),
    bbox_head=dict(in_channels=48, feat_channels=48),
)
work_dir = "work_dirs/demo/retinanet_r18"
