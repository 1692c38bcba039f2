"""The cache on disk: tar shards that zarr opens and webdataset streams, and everything that makes them trustworthy.

This package imports neither torch models nor mmdet: a cache can be inspected on any laptop.
"""
