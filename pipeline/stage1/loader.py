"""Load views for the teacher. Worker processes replay them; they are returned in planned order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.cache.stored_images import StoredImages
from pipeline.data.images import Images
from pipeline.data.views import Views
from pipeline.errors import DataError, PipelineError
from pipeline.records import ViewRecord

Batch = tuple[tuple[int, int], tuple[tuple[int, int], ...]]  # padded shape, ((image id, view), ...)
Shard = TypeVar("Shard")  # the caller's type for a shard


@dataclass(frozen=True)
class LoadedBatch:
    """Views (3, h, w) uint8 of one padded shape, and the record of each."""

    views: list[Tensor]
    records: list[ViewRecord]


class ViewDataset(Dataset):
    """Maps (shard, planned batch) to itself and its views. A PipelineError is returned, because torch would wrap it."""

    def __init__(self, images: Images, views: Views, files: StoredImages | None) -> None:
        self.images, self.views, self.files = images, views, files

    def __getitem__(self, planned: tuple[Any, Batch]) -> tuple[Any, Batch, list[Any]]:
        shard, batch = planned
        return shard, batch, [self._replay(image, view) for image, view in batch[1]]

    def _replay(self, image: int, view: int) -> tuple[Tensor, ViewRecord] | PipelineError:
        try:
            content = None if self.files is None else self.files.read(image)
            inputs, _, record = self.views.replay(self.images.info(image), view, content=content)
        except PipelineError as error:
            return error
        return inputs, record


class ViewLoader(Generic[Shard]):
    """Iterates once over planned batches, in order for any number of workers.

    batches: (shard, planned batch) pairs. A generator is advanced when a worker is idle. One set of workers serves a
    complete pass and prefetches across shards. files: those of a cache, to use instead of the image folder.
    """

    def __init__(
        self,
        images: Images,
        views: Views,
        batches: Iterable[tuple[Shard, Batch]],
        workers: int,
        files: StoredImages | None = None,
    ) -> None:
        dataset: Any = ViewDataset(images, views, files)
        self._loader = DataLoader(
            dataset, batch_size=None, sampler=batches, num_workers=workers, collate_fn=keep_as_loaded
        )

    def batches(
        self, skip_broken: bool = False, broken: Callable[[Shard, int, PipelineError], None] | None = None
    ) -> Iterator[tuple[Shard, LoadedBatch]]:
        """Yield (shard, loaded batch). A batch is empty only if it was planned without views.

        Raise the error of a broken image, unless `skip_broken` is set. With `broken`, which gets (shard, image id,
        error) of each broken image, batches without other images are yielded too.
        """
        for shard, (pad_shape, planned), loaded in self._loader:
            errors = [item for item in loaded if isinstance(item, PipelineError)]
            if errors and not skip_broken and broken is None:
                raise errors[0]
            for (image, _), item in zip(planned, loaded):
                if broken is not None and isinstance(item, PipelineError):
                    broken(shard, image, item)
            good = [item for item in loaded if not isinstance(item, PipelineError)]
            for _, record in good:
                require_pad_shape(record, pad_shape)
            if good or not planned or broken is not None:
                yield shard, LoadedBatch([view for view, _ in good], [record for _, record in good])

    def broken(self) -> Iterator[tuple[int, PipelineError]]:
        """Yield (image id, error) for every view that cannot be loaded."""
        for _, (_, planned), loaded in self._loader:
            for (image, _), item in zip(planned, loaded):
                if isinstance(item, PipelineError):
                    yield image, item


def keep_as_loaded(loaded: Any) -> Any:
    """Return the item unchanged. torch's default would turn tuples into lists."""
    return loaded


def require_pad_shape(record: ViewRecord, planned: tuple[int, int]) -> None:
    """Raise DataError unless a view has the padded shape of its shard plan."""
    if record.pad_shape != planned:
        raise DataError(
            f"image {record.image_id}, view {record.view}: expected padded shape {planned}, found "
            f"{record.pad_shape}; check the image sizes in the annotation file"
        )
