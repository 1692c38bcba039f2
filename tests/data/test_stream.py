"""The order of samples that stage 2 sees."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import load_config


def test_loader_workers_change_nothing(made: dict[str, Path]) -> None:
    from pipeline.data.stream import LoaderOptions, Stream, stream_loader
    from pipeline.stage2.teacher_data import prepare_teacher_data

    cfg, sections = load_config(str(made["frs"]))
    teacher_data = prepare_teacher_data(cfg, sections)
    runs = []
    for workers in (0, 2):
        stream = Stream(teacher_data.stream, 4, seed=1)
        epochs = []
        for epoch in range(2):
            stream.set_epoch(epoch)
            loader = stream_loader(stream, LoaderOptions(workers))
            epochs.append([[s.img_id for s in b["data_samples"]] for b in loader])
        runs.append(epochs)
    assert runs[0] == runs[1] and runs[0][0] != runs[0][1]
    assert sorted(i for batch in runs[0][0] for i in batch) == list(range(100, 112))
