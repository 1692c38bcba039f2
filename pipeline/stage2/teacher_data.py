"""Open the source of the teacher's outputs: the config's cache, or a live teacher on the same views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.cache.cache import Cache
from pipeline.cache.image_shards import FOLDER
from pipeline.cache.layout import pass_folder
from pipeline.cache.manifest import find_lost_shard
from pipeline.cache.shard_plan import references
from pipeline.cache.stored_images import StoredImages
from pipeline.codecs.base import Codec
from pipeline.codecs.group import open_codec
from pipeline.data.images import Images
from pipeline.data.shard_planning import expected_passes, images_and_views, layout_of, plan_views, require_images
from pipeline.data.stream import StreamSource
from pipeline.data.views import Views
from pipeline.errors import CacheError, ConfigError
from pipeline.losses.ld import SIDES
from pipeline.losses.registry import feature_losses
from pipeline.mmdet_compat.registry import Config
from pipeline.recipe import Inputs, open_cache, read_inputs
from pipeline.records import SampleRef
from pipeline.sections import DistillSection, Sections
from pipeline.stage2.compatibility import VIEWS_CHECKED, Grids, TeacherLayout, distinct_grids
from pipeline.stage2.teacher_source import CachedTeacher, LiveTeacher, TeacherSource
from pipeline.storage.files import local_path
from pipeline.storage.place import Place
from pipeline.teacher.heads import class_head
from pipeline.teacher.model import load_teacher
from pipeline.teacher.priors import configured_priors, priors_of
from pipeline.teacher.zoo import find_teacher

TOLERATED = 0.1  # gradient error that is accepted for every quality


@dataclass
class TeacherData:
    """The training data of a student: the source of the stream, the teacher's outputs, and their provenance."""

    stream: StreamSource
    teacher: TeacherSource
    layout: TeacherLayout
    provenance: dict[str, Any]


def prepare_teacher_data(cfg: Config, sections: Sections) -> TeacherData:
    """Open and check the config's cache, or build the live teacher. Raise PipelineError."""
    if sections.teacher.source == "live":
        return build_live_data(sections, *images_and_views(cfg, sections))
    return open_cached_data(sections, read_inputs(cfg, sections))


def open_cached_data(sections: Sections, inputs: Inputs) -> TeacherData:
    """Open the cache, and check that it is complete and that this config made it. Raise PipelineError."""
    if sections.distill.box_weight and not sections.cache.codec.boxes:
        raise ConfigError(
            "distill.box_weight: this cache has no box distributions; make a cache with "
            "cache.codec=dict(boxes=True), or set teacher.source='live'"
        )
    # The teacher's weights may be missing. If they exist, they must be those of the cache.
    cache = open_cache(sections.cache.place(), inputs, inputs.teacher.known_sha256(), "use another cache.dir")
    passes = read_passes(cache, expected_passes(sections, inputs.views), inputs.images)
    environments = {number: cache.manifest(number)["environment"] for number in passes}
    codec = open_codec(cache)
    require_served(codec, sections.distill, cache.root)
    require_map(sections.distill, cache.codec_measured.get("map") != "ones")
    check, tolerance = sections.views.check, sections.views.tolerance
    files = open_stored_images(cache) if sections.cache.images else None
    source = StreamSource(passes, inputs.images, inputs.views, cache, codec, check, tolerance, environments, files)
    compared = sections.distill.score_weight or sections.distill.box_weight
    priors = configured_priors(inputs.teacher.cfg.model) if compared else None
    bins = codec.box_channels // SIDES if sections.distill.box_weight else 0
    grids = first_grids(cache, passes)
    layout = TeacherLayout(grids, codec.widths(len(grids[0][1])), codec.score_channels, priors, bins)
    contents = cache.pass_contents()
    provenance = {
        "teacher": "cache",
        "content": cache.content(),
        "passes": {str(number): contents[str(number)] for number in passes},
        "recipe": cache.plan["recipe_digest"],
        "feature_loss_error": codec.gradient_error(feature_losses()[sections.distill.feature_loss].name),
        "views_check": check,
    }
    return TeacherData(source, CachedTeacher(codec), layout, provenance)


def open_stored_images(cache: Cache) -> StoredImages:
    """Open the image files of a cache. Raise CacheError where it has none, or where a local shard of them is lost."""
    stored = cache.stored_images()
    if local_path(cache.root) is not None:
        fault = find_lost_shard(cache.root / FOLDER, cache.image_manifest() or {})
        if fault is not None:
            raise fault
    return stored


def first_grids(cache: Cache, passes: dict[int, list[list[SampleRef]]]) -> Grids:
    """Return the FPN grids of some views. Raise CacheError where the cache has no view."""
    shard = next((refs for shards in passes.values() for refs in shards if refs), None)
    if shard is None:
        raise CacheError(
            f"{cache.root}: no view to train on, all images are in quarantine; run stage 1 with readable images"
        )
    reader = cache.shard(shard[0].cache_pass, shard[0].shard)
    return distinct_grids((ref.pad_shape, reader.levels(ref.index)) for ref in shard)


def read_passes(cache: Cache, expected: range, images: Images) -> dict[int, list[list[SampleRef]]]:
    """Read the samples of the expected passes. Raise CacheError (incomplete) or StaleCache (other images)."""
    missing = sorted(set(expected) - set(cache.passes()))
    if missing:
        raise CacheError(
            f"{cache.root}: pass {missing[0]} is not complete (complete: {len(expected) - len(missing)} of "
            f"{len(expected)}); run stage 1 again"
        )
    if local_path(cache.root) is not None:  # elsewhere, each size costs a request
        for number in expected:
            fault = find_lost_shard(pass_folder(cache.root, number), cache.manifest(number))
            if fault is not None:
                raise fault
    passes = {number: cache.references(number) for number in expected}
    for number, shards in passes.items():
        planned = {ref.image_id for shard in shards for ref in shard}
        require_images(cache.root, number, planned | cache.quarantine(number).images, images)
    return passes


def require_map(distill: DistillSection, present: bool) -> None:
    """Raise ConfigError where the feature loss is weighted by a richness map that the teacher does not give."""
    if not present and feature_losses()[distill.feature_loss].weighted:
        others = sorted(name for name, loss in feature_losses().items() if not loss.weighted)
        raise ConfigError(
            f"distill.feature_loss={distill.feature_loss!r}: weights features by the richness map, but the teacher has "
            f"no class scores; expected one of {', '.join(others)}"
        )


def require_served(codec: Codec, distill: DistillSection, root: Place) -> None:
    """Raise ConfigError where the codec is too coarse for the feature loss, or has no class scores."""
    if distill.score_weight and "score" not in codec.kinds:
        raise ConfigError(
            f"distill.score_weight={distill.score_weight}: {root} was made without class scores "
            "(cache.codec.scores=False); set distill.score_weight=0, or make a cache with class scores"
        )
    loss = distill.feature_loss
    error = codec.gradient_error(feature_losses()[loss].name)
    if error is None:
        raise ConfigError(
            f"distill.feature_loss={loss!r}: the codec of {root} was calibrated without this loss; make a cache with "
            "the loss installed, or with cache.codec.type='lossless'"
        )
    bound = max(TOLERATED, 2 * codec.allowed_error)
    if error > bound and not codec.serves(feature_losses()[loss]):
        raise ConfigError(
            f"distill.feature_loss={loss!r}: expected a gradient error of at most {bound:.0%}, the codec of {root} has "
            f"{error:.0%}; make a cache with cache.codec.profile='universal' or cache.codec.type='lossless'"
        )


def build_live_data(sections: Sections, images: Images, views: Views) -> TeacherData:
    """Build the live teacher, which runs in the training loop on the batches that a cache would give."""
    teacher = load_teacher(sections, find_teacher(sections.teacher), images.classes)
    require_map(sections.distill, teacher.scored)
    settings = layout_of(sections)
    passes = {n: references(plan_views(images, views, n, settings), n) for n in expected_passes(sections, views)}
    source = StreamSource(passes, images, views, None, None, "exact", 0.0, {})
    pads = {ref.pad_shape for shards in passes.values() for refs in shards for ref in refs}
    _, channels, scores = teacher.shapes(min(pads))
    grids = distinct_grids((pad, teacher.levels(pad)) for pad in sorted(pads)[:VIEWS_CHECKED])
    compared = sections.distill.score_weight or sections.distill.box_weight
    priors = priors_of(class_head(teacher.detector)) if compared else None
    layout = TeacherLayout(grids, channels, scores, priors, teacher.bins)
    return TeacherData(source, LiveTeacher(teacher), layout, {"teacher": "live", "content": None})
