"""The RetinaNet teacher's trained, frozen backbone: `_base_` of the other teachers, which train only neck and head."""

_base_ = "./teacher_retinanet_r101.py"

model = dict(
    backbone=dict(
        frozen_stages=4,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", prefix="backbone.", checkpoint="demo/weights/teacher_retinanet_r101_thin.pth"),
    ),
)
