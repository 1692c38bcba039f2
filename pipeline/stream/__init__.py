"""From shards to training batches: a schedule that is a pure function of (seed, epoch), and a webdataset pipeline."""

from pipeline.stream.pipeline import Stream, StreamSource, stream_loader

__all__ = ["Stream", "StreamSource", "stream_loader"]
