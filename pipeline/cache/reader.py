"""Read a shard strictly: one read per sample; check its checksum, then its tar members, then decompress it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.budget import excess
from pipeline.cache import tar
from pipeline.cache.plausible import most_stored, read_channels, require_plausible_view
from pipeline.cache.shard_format import Arrays, Chunks, SampleCodec, ShardHead
from pipeline.cache.sidecar import Sidecar, load_sidecar
from pipeline.cache.versions import FORMATS
from pipeline.errors import CorruptCache
from pipeline.records import FLIPS, LevelShapes, ViewRecord
from pipeline.storage.extents import Extent, Fetched
from pipeline.storage.place import Place, key_of, remedy, storage_of
from pipeline.storage.ranges import NOTHING, read_verified

REMEDY = "`python -m pipeline repair --config C` recomputes only this shard"


class ShardReader:
    """One shard, opened through its sidecar. Thread-safe: reads are positional.

    Raise CacheError where a file is missing, CorruptCache where bytes differ or the shard was forged. The error names
    shard and sample. Memory use is limited by the shard's own bytes and by the size of its FPN grids.
    """

    def __init__(self, path: Place, sidecar: Sidecar | None = None) -> None:
        self.path = path
        self.sidecar: Sidecar = sidecar or load_sidecar(path.with_suffix(".json"))
        self._remedy = remedy(path, REMEDY)
        self._ranges = storage_of(path).open_ranges(key_of(path), self.sidecar)
        try:
            if self._ranges.size != self.sidecar.size:
                raise CorruptCache(
                    f"{path}: expected {self.sidecar.size} bytes, found {self._ranges.size}; {self._remedy}"
                )
            self._head_bytes = self._bytes(self.sidecar.head, "head")
            self.head = self._parse(self._head_bytes)
            if self._ranges.local:  # a remote tail would cost one more request; `verify` reads it
                self._bytes(self.sidecar.tail, "tail")
        except BaseException:
            self.close()
            raise
        self.attributes = self.head.attributes

    def __len__(self) -> int:
        return len(self.sidecar.samples)

    def head_files(self) -> dict[str, bytes]:
        """Return the files in the shard's head, by zarr key."""
        return {name: bytes(data) for name, data in tar.parse(self._head_bytes)}

    def _parse(self, data: bytes) -> ShardHead:
        try:
            return FORMATS[self.sidecar.version].parse_head(data, len(self))
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {error}") from error

    def _bytes(self, extent: Extent, what: str, fetched: Fetched = NOTHING) -> bytes:
        data = read_verified(self._ranges.read, extent, fetched)
        if data is None:
            raise CorruptCache(
                f"{self.path}: {what} (bytes {extent.offset}-{extent.offset + extent.size}): size or checksum "
                f"differs from the sidecar; {self._remedy}"
            )
        return data

    def fetches(self, indices: Iterable[int]) -> list[Callable[[], Fetched]]:
        """Return calls that prefetch these samples for `chunks`, in any thread. Empty if reads are local."""
        return self._ranges.fetches([self.extent(index) for index in indices])

    def extent(self, index: int) -> Extent:
        """Return the extent of a sample. Raise CorruptCache where the shard has fewer samples."""
        self._name(index)
        return self.sidecar.samples[index]

    def _name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise CorruptCache(
                f"{self.path}: sample {index} is in the shard plan, but the shard has {len(self)}; {self._remedy}"
            )
        extent = self.sidecar.samples[index]
        return f"sample {index} (image {extent.image_id}, view {extent.view})"

    def levels(self, index: int) -> LevelShapes:
        """Return the FPN grids of a sample, from the shard's head."""
        self._name(index)
        return self.head.levels(index)

    def members(self, index: int, fetched: Fetched = NOTHING) -> dict[str, memoryview]:
        """Return the verified tar members of one sample, by zarr key."""
        what, names, extent = self._name(index), self.head.members(index), self.sidecar.samples[index]
        channels = read_channels(self.attributes["codec"])
        wrong = excess("bytes", extent.size, most_stored(self.head.levels(index), channels, len(names)))
        if wrong is not None:
            raise CorruptCache(f"{self.path}: {what}: {wrong} by its FPN grids; {self._remedy}")
        data = self._bytes(extent, what, fetched)
        try:
            members = list(tar.parse(data))
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {what}: {error}") from error
        if [name for name, _ in members] != names:
            raise CorruptCache(f"{self.path}: {what}: its tar members differ from the shard's head; {self._remedy}")
        return dict(members)

    def chunks(self, index: int, fetched: Fetched = NOTHING) -> Chunks:
        """Return the verified, encoded arrays of one sample, by name."""
        members = list(self.members(index, fetched).values())
        try:
            return self.head.chunks(members)
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {self._name(index)}: {error}") from error

    def record(self, index: int, chunks: Chunks) -> tuple[ViewRecord, LevelShapes]:
        """Decode a sample's view record and FPN grids."""
        stored = self._recorded(index, chunks)
        record, levels = ViewRecord.from_row(stored["record"], stored["thumbnail"])
        extent = self.sidecar.samples[index]
        sides = (*record.shape, *record.ori_shape, *record.pad_shape)
        if (
            (record.image_id, record.view) != (extent.image_id, extent.view)
            or levels != self.levels(index)
            or not (min(sides) > 0 and 0 <= record.flip < len(FLIPS))
        ):
            raise CorruptCache(
                f"{self.path}: {self._name(index)}: its record belongs to another sample; {self._remedy}"
            )
        try:
            require_plausible_view(levels, record.pad_shape, read_channels(self.attributes["codec"]))
        except ValueError as error:
            raise CorruptCache(
                f"{self.path}: {self._name(index)}: its record belongs to another sample, or to none ({error}); "
                f"{self._remedy}"
            ) from error
        return record, levels

    def _recorded(self, index: int, chunks: Chunks) -> Arrays:
        try:
            return self.head.record(index, chunks)
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {self._name(index)}: {error}") from error

    def coded(self, index: int, chunks: Chunks, codec: SampleCodec | None = None) -> Arrays:
        """Decode the codec's arrays of a sample. With `codec`, each has the sample's own length, and is checked."""
        try:
            return self.head.decode(index, chunks, codec)
        except CorruptCache as error:
            raise CorruptCache(f"{self.path}: {self._name(index)}: {error}") from error

    def read(self, index: int, codec: SampleCodec | None = None) -> Arrays:
        """Read every array of one sample, with its record and thumbnail."""
        chunks = self.chunks(index)
        self.record(index, chunks)
        return {**self.coded(index, chunks, codec), **self._recorded(index, chunks)}

    def view(self, index: int, codec: SampleCodec | None = None) -> tuple[ViewRecord, LevelShapes, Arrays]:
        """Read a sample: its view record, its FPN grids, and the codec's arrays."""
        chunks = self.chunks(index)
        return *self.record(index, chunks), self.coded(index, chunks, codec)

    def close(self) -> None:
        self._ranges.close()
