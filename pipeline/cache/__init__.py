"""The cache format: tar shards that zarr and webdataset can read, with sidecars and manifests that verify them.

This package imports neither torch nor mmdet, so a cache can be inspected on any machine.
"""
