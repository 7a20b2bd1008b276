"""The configurations of data sets by name, composed without all else that a run is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from vpeft_bench.config import sources as config_sources
from vpeft_bench.config.schema import register_resolvers
from vpeft_bench.config.typed_text import quoted
from vpeft_bench.data.schema import DataConfig

CLASSIFICATION = "classification"


def compose_data_configs(directory: Path, names: Sequence[str]) -> list[DataConfig]:
    """The configurations that ``data=NAME`` chooses, for all ``names``.

    Raises OmegaConf's error for a key or a type that DataConfig does not have.
    """
    return [config for config, _ in compose_with_tasks(directory, names)]


def compose_with_tasks(
    directory: Path, names: Sequence[str], own: Path | None = None
) -> list[tuple[DataConfig, str]]:
    """For all ``names`` the configuration that ``data=NAME`` chooses, and the task with it.

    A data set may choose its task and head, which the primary config lets it. That one composes a
    dozen files besides; here every group but ``data`` is left empty, unless the data set fills it,
    and Hydra's own config, which is most of the work, is left out.
    """
    groups = sorted(path.name for path in directory.iterdir() if path.is_dir())
    empty = [{group: None} for group in groups if group != "data"]
    primary = "data_alone"
    schema = OmegaConf.structured(DataConfig)
    composed = []
    places = [] if own is None else [f"hydra.searchpath=[{quoted(f'file://{own}')}]"]
    register_resolvers()
    config_sources.register()
    with _no_hydra(), initialize_config_dir(str(directory.absolute()), version_base="1.3"):
        for name in names:
            defaults = [*empty, {"data": name}, "_self_"]
            ConfigStore.instance().store(primary, {"defaults": defaults})
            loader = GlobalHydra.instance().config_loader()
            assert isinstance(loader, ConfigLoaderImpl)
            overrides, files = loader._parse_overrides_and_create_caching_repo(primary, places)
            chosen = create_defaults_list(files, primary, overrides, False, skip_missing=False)
            config = loader._compose_config_from_defaults_list(chosen.defaults, files)
            data = cast(DataConfig, OmegaConf.to_object(OmegaConf.merge(schema, config.data)))
            composed.append((data, OmegaConf.select(config, "task.name", default=CLASSIFICATION)))
    return composed


@contextmanager
def _no_hydra() -> Iterator[None]:
    """Within a job Hydra is there already, for one config; it is put back afterwards."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = before
