"""A cache written once and committed: whatever changes, these bytes must go on meaning the same numbers.

Made by `python -m tests.test_golden` from the mixed cache of test_format_doc.py; only together with a new VERSION.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cache.cache import VERSION
from pipeline.cache.files import read_json
from pipeline.cache.reader import ShardReader
from pipeline.codec import load_codec
from pipeline.codec.base import stack
from pipeline.codec.symbols import from_tokens, symbol_order
from pipeline.records import ViewRecord

GOLDEN = Path(__file__).parent / "golden" / f"frs-{VERSION}"


def decoded(root: Path) -> dict[str, np.ndarray]:
    """Maps, symbols and tensors of every sample, by name."""
    codec: Any = load_codec(root, read_json(root / "codec.json"))
    reader = ShardReader(root / "pass-0/shard-00000.tar")
    found = {}
    for index in range(len(reader)):
        stored = reader.read(index)
        _, levels = ViewRecord.from_row(stored.pop("record"), stored.pop("thumbnail"))
        batch = stack([stored], [levels])
        output, maps = codec.decode(batch), codec.coded_maps(batch)[0]
        for level, (y, t, m) in enumerate(zip(output.features, output.scores, output.frs)):
            found |= {f"{index}/features/{level}": y[0].numpy(), f"{index}/scores/{level}": t[0].numpy()}
            found[f"{index}/frs/{level}"] = m[0].numpy()
        for what in ("feature", "score"):
            expected = torch.from_numpy(codec.tables[f"{what}_expected"])
            order = symbol_order(expected, maps.whole())
            shapes = [(expected.shape[1], 16, -(-h // 4) * -(-w // 4)) for h, w in levels]
            for level, q in enumerate(from_tokens(batch.arrays[f"{what}s"][0], order, shapes)):
                found[f"{index}/{what}_symbols/{level}"] = q.numpy().astype(np.int32)
    return found


def test_golden_cache_decodes_to_the_same_numbers() -> None:
    expected = np.load(GOLDEN / "expected.npz")  # a missing file fails
    found = decoded(GOLDEN)
    assert sorted(found) == sorted(expected.files) and len(found) > 50
    for name, values in found.items():
        if "features" in name or "scores" in name:  # sums of products: as exact as float32 is on any machine
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5 * np.abs(expected[name]).max())
        else:
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


if __name__ == "__main__":
    import shutil
    import tempfile

    from tests.test_format_doc import make_mixed

    with tempfile.TemporaryDirectory() as folder:
        made = make_mixed(Path(folder))
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(made, GOLDEN)
    np.savez_compressed(GOLDEN / "expected.npz", **decoded(GOLDEN))
