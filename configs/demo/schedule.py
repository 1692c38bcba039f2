"""How a student of generated scenes is trained, whoever teaches it: `_base_` of the demo's and the benchmark's configs."""

val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10, norm_type=2),
)
randomness = dict(seed=520)
