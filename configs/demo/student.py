"""Settings shared by the thin R50 students of generated scenes: `_base_` of demo and benchmark configs."""

thin_r50 = dict(  # use as model.backbone
    depth=50,
    frozen_stages=1,
    norm_eval=False,
    # Pre-trained by demo/pretrain_backbone.py on cut-outs of all 80 categories; replaces ImageNet weights.
    init_cfg=dict(type="Pretrained", prefix=None, checkpoint="demo/weights/resnet50_thin.pth"),
)
cache = dict(shard_samples=64, calibration_views=48, workers=1)

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=8, val_interval=8)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=8, T_max=8, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20), checkpoint=dict(type="CheckpointHook", interval=4, max_keep_ckpts=1)
)
randomness = dict(seed=520)
