"""Distil the features of DINOv2 ViT-S/14 into a RetinaNet R50 on COCO. The teacher has no boxes and no class scores.

Purpose   a teacher that is no mmdet model; its patch grid (stride 14) is one level, paired with the student's P4
Weights   pip install ".[timm]", then once, with network:
          python -c "import timm, torch; m = timm.create_model('vit_small_patch14_dinov2.lvd142m', pretrained=True); \
torch.save(m.state_dict(), 'dinov2_vits14.pth')"
Commands  python stage1_cache_teacher.py --config configs/features/dinov2_retinanet_r50.py
          python stage2_distill.py --config configs/features/dinov2_retinanet_r50.py
Result    none: this project has not run it on COCO, and the loss weight is not tuned
"""

_base_ = "../coco/retinanet_r101_r50_2x.py"
teacher = dict(
    _delete_=True,
    type="timm",
    name="vit_small_patch14_dinov2.lvd142m",
    checkpoint="dinov2_vits14.pth",
    min_map=0.0,
)
cache = dict(dir="work_dirs/coco/cache_dinov2", codec=dict(scores=False, profile="universal"))
distill = dict(
    feature_loss="pkd",
    feature_weight=10.0,
    score_weight=0.0,
    student_levels=[1],
    interpolate="bilinear",
    adapter="1x1",
)
work_dir = "work_dirs/coco/retinanet_r50_dinov2"
