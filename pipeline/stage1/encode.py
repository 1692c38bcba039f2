"""Encode the teacher's output for a batch of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.codecs.base import Codec
from pipeline.codecs.packing import Sample
from pipeline.errors import CodecError
from pipeline.precision import precision
from pipeline.records import TeacherOutput, ViewRecord


@dataclass(frozen=True)
class EncodedViews:
    """An encoded batch. `errors`: mean error over its samples, by name."""

    records: Sequence[ViewRecord]
    samples: list[Sample]
    errors: dict[str, float]


def encode_views(codec: Codec, output: TeacherOutput, records: Sequence[ViewRecord]) -> EncodedViews:
    """Encode the teacher's output for a batch of views. Raise CodecError, which names the image."""
    try:
        with precision(False):
            samples, errors = codec.encode(output)
    except CodecError as error:
        failed = records if error.sample is None else [records[error.sample]]
        names = ", ".join(f"{record.image_id} (view {record.view})" for record in failed)
        raise CodecError(f"image {names}: {error}") from error
    for sample, record in zip(samples, records):
        sample["record"], sample["thumbnail"] = record.row(output.levels), record.thumbnail
    return EncodedViews(records, samples, errors)
