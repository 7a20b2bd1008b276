"""Copies of training pictures among those that are evaluated, found when a run decodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from vpeft_bench.cli.overrides import check_overrides
from vpeft_bench.config.schema import RunConfig, typed
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.errors import UnsoundDataError
from vpeft_bench.runs.feature_store import forget
from vpeft_bench.runs.run import run


@pytest.fixture
def config_of(image_list: Callable[..., DataConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    """Configs of a run on pictures of which one is evaluated as well, under another name."""
    test = "copy.bmp 0\nimages/10.png 1\nimages/11.png 2\n"
    folder = Path(image_list({"test.txt": test}).root) / "toy"
    Image.open(folder / "images" / "0.png").save(folder / "copy.bmp")

    def make(*overrides: str) -> RunConfig:
        given = (
            "data=imagelist",
            f"data.root={folder}",
            "method=linear",
            "train.epochs=1",
            "hardware=cpu",
            f"results_dir={tmp_path / 'results'}",
            f"hardware.feature_cache_dir={tmp_path / 'features'}",
        )
        checked = check_overrides([*given, *overrides])
        assert checked.config is not None, checked.problems
        return typed(checked.config)

    return make


@pytest.mark.parametrize("cache", ["off", "memory", "disk"])
def test_a_copy_is_refused_where_pictures_are_decoded(
    config_of: Callable[..., RunConfig], cache: str
) -> None:
    """Also where features of both splits are found, and no picture is decoded any more."""
    forget()
    console = Console(quiet=True)
    asked = f"hardware.feature_cache={cache}"
    refused = r"test\.txt: 1 of the 3 test pictures (.|\n)*copy\.bmp is .*images/0\.png"
    with pytest.raises(UnsoundDataError, match=refused):
        run(config_of(asked), console)
    allowed = run(config_of(asked, "data.allow_duplicates=true"), console)
    assert allowed.record is not None
    assert "1 test picture is in the training part by content" in allowed.record.labels
    with pytest.raises(UnsoundDataError, match=r"data\.allow_duplicates=true"):
        run(config_of(asked, "seed=1"), console)


def test_what_is_not_decoded_into_memory_is_not_compared(
    config_of: Callable[..., RunConfig],
) -> None:
    outcome = run(config_of("hardware.feature_cache=off", "data.cache_gib=0"), Console(quiet=True))
    assert outcome.record is not None
    assert not any("by content" in label for label in outcome.record.labels)


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_pictures_of_one_colour_are_not_compared(
    config_of: Callable[..., RunConfig], cache: str
) -> None:
    forget()
    config = config_of(f"hardware.feature_cache={cache}")
    for name in ("copy.bmp", "images/0.png"):
        path = Path(config.data.root) / name
        Image.new("RGB", Image.open(path).size).save(path)
    outcome = run(config, Console(quiet=True))
    assert outcome.record is not None
    assert not any("by content" in label for label in outcome.record.labels)
