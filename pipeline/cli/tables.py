"""Format a cache, a forecast or a run as a few lines of text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.cache.completeness import describe_passes
from pipeline.codecs.summary import describe_student, list_warnings, promise
from pipeline.text import one_line, one_line_each


def compare_with_fp16(ratio: float) -> str:
    """Compare a cache's size with fp16 in words. `ratio`: bytes as fp16 / bytes of the cache; below 1 if lossless."""
    return (
        f"{ratio:.1f} times smaller than fp16" if ratio >= 1 else f"{1 / max(ratio, 0.01):.1f} times as large as fp16"
    )


def stage1_table(root: str, summary: dict[str, Any]) -> str:
    """Format the summary of stage 1."""
    summary = one_line_each(summary)
    lines = [
        f"cache    {one_line(root)}",
        f"stored   {summary['images']} images, {summary['views']} views in {summary['passes']} passes, "
        f"{summary['bytes'] / 1e6:.1f} MB",
        f"view     {summary['bytes_per_view'] / 1e3:.1f} kB, {compare_with_fp16(summary['ratio_to_fp16'])}",
        f"took     {summary['seconds']:.0f} s for {summary['views_computed']} views",
        f"content  {summary['content'][:16]}",
    ]
    if summary.get("stored_images"):
        lines.insert(2, describe_stored_images(summary["stored_images"]))
    if summary["quarantined"]:
        lines.insert(2, f"missing  {summary['quarantined']} views in quarantine (pass-*/quarantine.json)")
    return "\n".join(lines)


def describe_stored_images(stored: dict[str, int]) -> str:
    """Describe the image files that a cache stores."""
    count, size = stored["images"], stored["bytes"]
    return f"files    of {count} images, {size / 1e6:.1f} MB, {size / max(1, count) / 1e3:.1f} kB an image"


def format_duration(seconds: float) -> str:
    """Format a duration in s, min or h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def forecast_table(found: dict[str, Any]) -> str:
    """Format the result of `forecast`."""
    found = one_line_each(found)
    scale, unit = (1e9, "GB") if found["bytes"] > 2e9 else (1e6, "MB")
    low, high = found["bytes_low"] / scale, found["bytes_high"] / scale
    lines = [
        f"views    {found['views']}; {found['images']} images, {found['distinct_views']} views",
        f"cache    {found['bytes'] / scale:.2f} {unit} (95%: {low:.2f} to {high:.2f}), "
        f"{found['bytes_per_view'] / 1e3:.1f} kB a view; measured on {found['sampled_views']} views, "
        f"codec calibrated on {found['calibrated_on']}",
    ]
    for name, (mean, low, high) in found["bytes_by_tensor"].items():
        lines.append(f"  {name:10} {mean / scale:9.3f} {unit}  ({low / scale:.3f} to {high / scale:.3f})")
    if "stored_images" in found:
        lines.append(describe_stored_images(found["stored_images"]))
    lines.append(
        f"stage 1  {format_duration(found['stage1_seconds'])} on this {found['device']}, "
        f"{found['stage1_views_per_second']:.1f} views/s; writes {found['write_mb_per_second_needed']:.2f} MB/s"
    )
    if "free_bytes" in found:
        lines.append(
            f"disk     {found['free_bytes'] / 1e9:.1f} GB free, "
            f"writes {found['write_mb_per_second_available']:.0f} MB/s"
        )
    if "stage2_seconds" in found:
        lines += [
            f"stage 2  {format_duration(found['stage2_seconds'])} for {found['epochs']} epochs, "
            f"{found['stage2_images_per_second']:.1f} images/s; reads {found['stage2_read_mb_per_second']:.2f} MB/s",
            f"live     {format_duration(found['live_seconds'])} for the same epochs with the live teacher; the cache "
            f"saves time after {found['break_even_epochs']:.1f} epochs",
        ]
    if found["left_out"]:
        lines.append(f"left out {'; '.join(found['left_out'])}, for lack of time; --seconds gives more")
    return "\n".join(lines + [f"warning  {line}" for line in found["warnings"]])


def info_table(found: dict[str, Any]) -> str:
    """Format the result of `describe`."""
    found = one_line_each(found)
    views, complete, expected = max(1, found["views"]), len(found["passes"]), found["expected_passes"]
    lacks = "; not complete, `verify` says what is missing" if expected else "; summary.json is missing"
    passes = describe_passes(complete, expected) + lacks * (complete != expected)
    lines = [
        f"cache    {found['cache']} ({found['format'][0]} {found['format'][1]})",
        f"images   {found['images']}, {found['views']} views in {passes}",
        f"bytes    {found['bytes'] / 1e6:.1f} MB, {found['bytes'] / views / 1e3:.1f} kB a view, "
        + compare_with_fp16(max(1, found["fp16_bytes"]) / max(1, found["bytes"])),
    ]
    for name, size in found["bytes_by_tensor"].items():
        lines.append(f"  {name:10} {size / views / 1e3:8.2f} kB a view  {100 * size / max(1, found['bytes']):5.1f}%")
    if found["stored_images"]:
        lines.append(describe_stored_images(found["stored_images"]))
    for number, errors in found["measured"].items():
        text = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in errors.items())
        lines.append(f"pass {number}   {found['passes'][number]} views, relative rms error of the coded values: {text}")
    lines += [
        f"codec    {promise(found['codec'])}",
        *describe_student(found["codec"]),
        *(f"warning  {line}" for line in list_warnings(found["codec"], found["calibration"])),
        f"teacher  {found['teacher']['name'] or 'from files'}, weights {found['teacher']['sha256'][:16]}",
        f"recipe   {found['recipe'][:16]}",
        f"content  {found['content'][:16] if found['content'] else 'unknown, because gate.json is missing'}",
    ]
    return "\n".join(lines)


def export_table(folder: Path, written: list[Path]) -> str:
    """List the files of one exported view, one line for each kind."""
    kinds = Counter(path.stem.rpartition("_")[0] for path in written if path.suffix == ".npy")
    lines = [
        f"{kind:8} {levels} levels: {kind}_0 to {kind}_{levels - 1}, .npy and .png" for kind, levels in kinds.items()
    ]
    return "\n".join([f"view     {one_line(str(folder))}, {len(written)} files; view.json describes them", *lines])


def stage2_table(summary: dict[str, Any]) -> str:
    """Format the summary of stage 2."""
    summary = one_line_each(summary)
    source = f"cache {summary['content'][:16]}" if summary["content"] else "live teacher"
    if summary.get("views_check") == "close":
        source += " (views.check='close': pixels were compared by thumbnail only)"
    if summary.get("inherit_from_teacher"):
        source += "; neck and head started from the teacher's weights"
    return "\n".join(
        [
            f"student  mAP {summary['mAP']:.3f}, AP50 {summary['AP50']:.3f} after {summary['epochs']} epochs",
            f"teacher  {source}",
            f"took     {summary['seconds']:.0f} s, {summary['images_per_second']:.1f} images/s",
            f"results  {summary['work_dir']}",
        ]
    )
