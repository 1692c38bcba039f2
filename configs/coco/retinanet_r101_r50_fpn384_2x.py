"""Train a RetinaNet R50 with 384 channels from the cache of retinanet_r101_r50_2x; adapters match the widths."""

_base_ = "./retinanet_r101_r50_2x.py"
model = dict(neck=dict(out_channels=384), bbox_head=dict(in_channels=384, feat_channels=384))
work_dir = "work_dirs/coco/retinanet_r101_r50_fpn384_2x"
