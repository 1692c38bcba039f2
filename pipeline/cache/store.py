"""Public name of `pipeline.cache.zarr_store`."""

from pipeline.cache.zarr_store import TarStore

__all__ = ["TarStore"]
