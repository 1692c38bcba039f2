"""`pipeline.cache.zarr_store` by its public name."""

from pipeline.cache.zarr_store import TarStore

__all__ = ["TarStore"]
