"""Train a RetinaNet R18 from the cache of retinanet_r101_r50_2x. Stage 1 is not run again."""

_base_ = "./retinanet_r101_r50_2x.py"
model = dict(
    backbone=dict(depth=18, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
work_dir = "work_dirs/coco/retinanet_r101_r18_2x"
