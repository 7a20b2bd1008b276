"""``hardware.accumulate``: a batch in parts is the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Cli
from tests.running import run_here
from vpeft_bench.data.loading import EpochSampler


@pytest.mark.parametrize(("size", "batch", "parts"), [(200, 32, 3), (7, 7, 7), (10, 4, 2)])
def test_parts_make_up_their_batches(size: int, batch: int, parts: int) -> None:
    whole, split = (EpochSampler(size, batch, seed=3, shuffle=True) for _ in range(2))
    split.parts = parts
    indices = [part for _, part in split]
    assert len(split) == len(indices) == len(whole) * parts
    sizes = [len(part) for part in indices]
    assert min(sizes) >= 1
    for at, (_, together) in enumerate(whole):
        of_batch = slice(at * parts, (at + 1) * parts)
        np.testing.assert_array_equal(np.concatenate(indices[of_batch]), together)
        assert max(sizes[of_batch]) - min(sizes[of_batch]) <= 1
        shares = [split.share(part) / parts for part in range(of_batch.start, of_batch.stop)]
        assert shares == pytest.approx([n / len(together) for n in sizes[of_batch]])


def _trained(results: Path, tiny_data: Path, *options: str) -> Path:
    return run_here(
        results,
        "data=imagelist",
        f"data.root={tiny_data}",
        "method=lora",
        "train.epochs=1",
        "train.optimizer=sgd",  # AdamW would make a step of a rounding error
        "train.clip_norm=1",
        *options,
    ).directory


def test_a_batch_in_parts_gives_the_same_weights_and_is_the_same_run(
    tmp_path: Path, tiny_data: Path
) -> None:
    """200 pictures in batches of 32: the last has 8, in parts of 3, 3 and 2."""
    whole = _trained(tmp_path / "whole", tiny_data)
    parts = _trained(tmp_path / "parts", tiny_data, "hardware.accumulate=3")
    assert whole.relative_to(tmp_path / "whole") == parts.relative_to(tmp_path / "parts")
    for file in ("delta.safetensors", "head.safetensors"):
        one, other = load_file(whole / file), load_file(parts / file)
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=1e-6)
    first, second = (json.loads((run / "record.json").read_text()) for run in (whole, parts))
    assert second["asked"]["hardware"]["accumulate"] == 3
    assert second["happened"]["curves"]["train_loss"] == pytest.approx(
        first["happened"]["curves"]["train_loss"], rel=1e-4
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["hardware.accumulate=65"], ["a batch has 32 pictures", "accumulate: 32 or less"]),
        (["hardware.accumulate=2", "head=batch_norm"], ["statistics of a batch", "leave head="]),
        (["hardware.accumulate=0"], ["hardware.accumulate=0"]),
    ],
)
def test_parts_that_are_no_batch_are_refused(
    cli: Cli, tiny_data: Path, options: list[str], said: list[str]
) -> None:
    done = cli("data=imagelist", f"data.root={tiny_data}", "method=linear", *options)
    assert done.returncode == 2
    assert all(text in done.stderr for text in said), done.stderr


def test_a_loss_over_all_pictures_of_a_batch_is_refused(cli: Cli) -> None:
    done = cli("data=demo/glyphs_retrieval", "method=linear", "hardware.accumulate=2")
    assert done.returncode == 2
    assert "the loss of retrieval compares all pictures of a batch" in done.stderr
