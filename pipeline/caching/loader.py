"""Views for the teacher: replayed in worker processes, handed out in planned order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.data import Images
from pipeline.errors import DataError, PipelineError
from pipeline.records import ViewRecord
from pipeline.views import Views

Batch = tuple[tuple[int, int], tuple[tuple[int, int], ...]]  # padded shape, ((image id, view), ...)


class ViewDataset(Dataset):
    """Batches of views, loaded in worker processes. A user's error travels as a value: torch would wrap it."""

    def __init__(self, images: Images, views: Views, batches: list[Batch]) -> None:
        self.images, self.views, self.batches = images, views, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Any]:
        loaded: list[Any] = []
        for image, view in self.batches[index][1]:
            try:
                inputs, _, record = self.views.replay(self.images.info(image), view)
                loaded.append((inputs, record))
            except PipelineError as error:
                loaded.append(error)
        return loaded


class ViewLoader:
    """Iterates over planned batches in order, whatever the number of workers."""

    def __init__(self, images: Images, views: Views, batches: list[Batch], workers: int) -> None:
        self._batches = batches
        dataset = ViewDataset(images, views, batches)
        workers = min(workers, len(batches))
        self._loader = DataLoader(dataset, batch_size=None, num_workers=workers)

    def batches(self, skip_broken: bool = False) -> Iterator[tuple[Batch, list[Tensor], list[ViewRecord]]]:
        """(planned batch, views, records). Raises the DataError of a broken image unless told to skip it."""
        for batch, loaded in zip(self._batches, self._loader):
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
            if good:
                yield batch, [view for view, _ in good], [record for _, record in good]

    def broken(self) -> Iterator[tuple[int, Exception]]:
        """(image id, error) of every view that cannot be loaded."""
        for (_, samples), loaded in zip(self._batches, self._loader):
            for (image, _), item in zip(samples, loaded):
                if isinstance(item, Exception):
                    yield image, item
