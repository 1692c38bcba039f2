"""The RetinaNet teacher's backbone, trained and frozen: `_base_` of the other teachers, which train neck and head alone."""

_base_ = "./teacher_retinanet_r101.py"

model = dict(
    backbone=dict(
        frozen_stages=4,
        norm_eval=True,
        init_cfg=dict(type="Pretrained", prefix="backbone.", checkpoint="demo/weights/teacher_retinanet_r101_thin.pth"),
    ),
)
