"""Views for the teacher: replayed in worker processes, handed out in planned order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data.images import Images
from pipeline.data.views import Views
from pipeline.errors import DataError, PipelineError
from pipeline.records import ViewRecord

Batch = tuple[tuple[int, int], tuple[tuple[int, int], ...]]  # padded shape, ((image id, view), ...)


class ViewDataset(Dataset):
    """Maps a planned batch to its views. A user's error travels as a value: torch would wrap it."""

    def __init__(self, images: Images, views: Views) -> None:
        self.images, self.views = images, views

    def __getitem__(self, batch: Batch) -> list[Any]:
        loaded: list[Any] = []
        for image, view in batch[1]:
            try:
                inputs, _, record = self.views.replay(self.images.info(image), view)
                loaded.append((inputs, record))
            except PipelineError as error:
                loaded.append(error)
        return loaded


class ViewLoader:
    """Iterates once over planned batches, in order whatever the number of workers.

    Batches may come from a generator: it is asked for the next when a worker has nothing to do, so one set of workers
    serves a whole pass and reads ahead over the borders of shards.
    """

    def __init__(self, images: Images, views: Views, batches: Iterable[Batch], workers: int) -> None:
        self._planned: deque[Batch] = deque()  # handed to the workers, not yet back
        self._loader = DataLoader(
            ViewDataset(images, views), batch_size=None, sampler=self._hand_out(batches), num_workers=workers
        )

    def _hand_out(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._planned.append(batch)
            yield batch

    def _loaded(self) -> Iterator[tuple[Batch, list[Any]]]:
        for loaded in self._loader:
            yield self._planned.popleft(), loaded

    def batches(self, skip_broken: bool = False) -> Iterator[tuple[Batch, list[Tensor], list[ViewRecord]]]:
        """(planned batch, views, records). Raises the DataError of a broken image unless told to skip it."""
        for batch, loaded in self._loaded():
            errors = [item for item in loaded if isinstance(item, Exception)]
            if errors and not skip_broken:
                raise errors[0]
            good = [item for item in loaded if not isinstance(item, Exception)]
            for _, record in good:
                if record.pad_shape != batch[0]:
                    raise DataError(
                        f"image {record.image_id}, view {record.view}: planned with padded shape {batch[0]}, came out "
                        f"as {record.pad_shape}; do the sizes in the annotation file fit the images?"
                    )
            if good or not batch[1]:
                yield batch, [view for view, _ in good], [record for _, record in good]

    def broken(self) -> Iterator[tuple[int, Exception]]:
        """(image id, error) of every view that cannot be loaded."""
        for (_, samples), loaded in self._loaded():
            for (image, _), item in zip(samples, loaded):
                if isinstance(item, Exception):
                    yield image, item
