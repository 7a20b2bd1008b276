"""The typed configuration of a run.

Importing this module imports neither torch nor Hydra: command line and leaderboards start without.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vpeft_bench import plugins
from vpeft_bench.config.sections import (
    BackboneConfig,
    CostConfig,
    HardwareConfig,
    HeadConfig,
    InputConfig,
    LoggerConfig,
    Protocol,
    ProtocolConfig,
    SweepConfig,
    TrainConfig,
    TuneConfig,
    VariantConfig,
)
from vpeft_bench.data.schema import DataConfig
from vpeft_bench.fields import setting

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        variant: the row of a table that it is for, where that has a name of its own.
        method: ``name`` and the method's own hyper-parameters.
        task: ``name`` and the options of the kind of task, see :mod:`vpeft_bench.tasks.kind`.
        head: of a dense task; else null is the backbone's own linear.
        input: of a dense task; else null.
        render: draw predictions beside the truth at the end of the run.
        predictions: store what is predicted on the split that is scored; of a finished run as well.
        plugins: modules that were imported first, see :mod:`vpeft_bench.plugins`.
        results_dir: records lie below it.
        rerun: run again although a finished record exists, and replace it.
    """

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: dict[str, Any] = field(default_factory=dict)
    variant: VariantConfig = field(default_factory=VariantConfig)
    task: dict[str, Any] = field(default_factory=lambda: {"name": "classification"})
    head: HeadConfig | None = None
    input: InputConfig | None = None
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logger: LoggerConfig = setting(LoggerConfig, identity=False)
    cost: CostConfig = setting(CostConfig, identity=False)
    tune: TuneConfig = setting(TuneConfig, identity=False)
    sweep: SweepConfig = setting(SweepConfig, identity=False)
    seed: int = setting(0, identity=False, minimum=0, maximum=2**31 - 1)
    results_dir: str = setting("results/runs", identity=False)
    rerun: bool = setting(False, identity=False)
    render: bool = setting(False, identity=False)
    predictions: bool = setting(False, identity=False)
    plugins: list[str] = setting(list, identity=False)


# Keys that hold a path: a leading ``~`` is the home folder, wherever the value comes from.
PATHS = (
    "data.root",
    "backbone.weights",
    "hardware.feature_cache_dir",
    "cost.results_dir",
    "results_dir",
)


def trained_split(config: RunConfig) -> str:
    """The split that is trained on."""
    return "train" if config.protocol.name is Protocol.select else config.data.final_train


def register_schema() -> None:
    """Make the schema known to Hydra; ``config.yaml`` names it first in its defaults.

    In config files ``${expanded:PATH}`` is the path with its ``~`` replaced, ``${of_variant:KEY}``
    what the variant sets KEY to on the data set of the run, ``${members:NAME}`` the data sets of a
    benchmark, ``${group_of:BENCHMARK,DATA}`` the group of one of them, and
    ``${methods_for:FAMILY,TASK}`` the methods of the package that fit.
    """
    from hydra.core.config_store import ConfigStore

    from vpeft_bench.config import sources as config_sources

    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    config_sources.register()
    register_resolvers()


def register_resolvers() -> None:
    """Make known what config files may ask for: ``${NAME:...}``."""
    from omegaconf import OmegaConf

    from vpeft_bench.config import benchmarks
    from vpeft_bench.config.sources import methods_for
    from vpeft_bench.config.variants import of_variant

    OmegaConf.register_new_resolver("expanded", os.path.expanduser, replace=True)
    OmegaConf.register_new_resolver("of_variant", of_variant, replace=True)
    OmegaConf.register_new_resolver("members", benchmarks.swept, replace=True)
    OmegaConf.register_new_resolver("methods_for", methods_for, replace=True)
    OmegaConf.register_new_resolver("group_of", benchmarks.group_of, replace=True)


def typed(config: DictConfig) -> RunConfig:
    """The composed config as dataclasses, types checked, ``~`` of its paths replaced.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value does not fit its type.
    """
    from omegaconf import OmegaConf

    from vpeft_bench.tasks.names import with_defaults

    fits = OmegaConf.get_type(config) is RunConfig
    structured = config if fits else OmegaConf.merge(OmegaConf.structured(RunConfig), config)
    run_config = OmegaConf.to_object(structured)
    assert isinstance(run_config, RunConfig)
    for key in PATHS:
        node, _, name = key.rpartition(".")
        part = getattr(run_config, node) if node else run_config
        setattr(part, name, os.path.expanduser(getattr(part, name)))
    run_config.task = with_defaults(run_config.task)
    return run_config


def plain(config: RunConfig) -> dict[str, Any]:
    """The config as JSON-ready values, as recorded."""
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def from_plain(asked: dict[str, Any]) -> RunConfig:
    """The config that :func:`plain` gave, as a record keeps it.

    Keys that came later are default; options of methods that came later have the value that gives
    what was done then.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a key or a value is not of this version.
        MethodOptionError: there is no such method.
        ConfigError: a plug-in of that run cannot be imported.
    """
    from omegaconf import OmegaConf

    from vpeft_bench.methods.registry import method_class

    config = typed(OmegaConf.create(asked))
    plugins.use(config.plugins)
    options = dict(config.method)
    name = options.pop("name")
    config.method = {"name": name, **method_class(name).completed(options)}
    return config
