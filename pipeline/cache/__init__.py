"""The cache's format: tar shards that zarr opens and webdataset streams, and everything that makes them trustworthy.

Nothing here imports torch or mmdet: a cache can be inspected on any laptop.
"""
