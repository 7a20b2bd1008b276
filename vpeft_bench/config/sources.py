"""Where Hydra finds configs besides ``configs/``: the methods themselves, and plug-ins.

A method needs no file: what ``method=NAME`` chooses is its name, and its options with their
defaults. A file ``method/NAME.yaml`` in a folder of configs comes before that, for other values.
"""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from vpeft_bench import plugins
from vpeft_bench.catalogue import facts
from vpeft_bench.config.choices import own_folders
from vpeft_bench.errors import ConfigError, unknown_name

SCHEME = "methods"
_GROUP = "method"


class Methods(ConfigSource):
    """Every method as a choice of the group ``method``; none is imported before it is chosen."""

    @staticmethod
    def scheme() -> str:
        """How a search path begins that names this source."""
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Name and options of a method."""
        name = _method(config_path)
        return ConfigResult(
            provider=self.provider,
            path=f"{SCHEME}://",
            config=OmegaConf.create({"name": name, **facts.defaults(name)}),
            header={"package": _GROUP},
        )

    def available(self) -> bool:
        """It always is."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether methods lie below a path."""
        path = config_path.strip("/")
        return not path or any(f"{_GROUP}/{n}".startswith(f"{path}/") for n in facts.names())

    def is_config(self, config_path: str) -> bool:
        """Whether a path is a method."""
        return config_path.startswith(f"{_GROUP}/") and _method(config_path) in facts.names()

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What lies below a path: methods, groups of them, or both."""
        start = f"{config_path.strip('/')}/".lstrip("/")
        below = [f"{_GROUP}/{name}" for name in facts.names()]
        rest = [path.removeprefix(start) for path in below if path.startswith(start)]
        groups = {path.partition("/")[0] for path in rest if "/" in path}
        configs = {path for path in rest if "/" not in path}
        if results_filter is ObjectType.GROUP:
            return sorted(groups)
        return sorted(configs if results_filter is ObjectType.CONFIG else groups | configs)


class FurtherPlaces(SearchPathPlugin):
    """The folders of configs of plug-ins and of this command line, then the methods."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append them to where Hydra looks."""
        for folder in plugins.config_folders():
            search_path.append("plug-in", f"file://{folder}")
        for folder in own_folders():
            search_path.append("command line", f"file://{folder}")
        search_path.append("vpeft_bench", f"{SCHEME}://")


def methods_for(family: str, task: str = "") -> str:
    """``${methods_for:FAMILY}`` in a config file: the methods of this package, to be swept over.

    Args:
        family: of backbones that they all support.
        task: ``dense``: those alone that serve a dense head.

    Raises:
        ConfigError: no method supports such a family, or there is no such task.
    """
    from vpeft_bench.methods.registry import method_class  # imports torch

    known = {name for m in facts.native_methods() for name in m.families}
    if family not in known:
        raise ConfigError([unknown_name("family", family, sorted(known))])
    if task not in ("", "dense"):
        raise ConfigError([unknown_name("task", task, ["dense"])])
    names = [m.name for m in facts.native_methods() if family in m.families]
    dense = task == "dense"
    return ",".join(
        sorted(name for name in names if not dense or method_class(name)().dense_refusal is None)
    )


def register() -> None:
    """Make them known to Hydra."""
    for place in (Methods, FurtherPlaces):
        Plugins.instance().register(place)


def _method(config_path: str) -> str:
    return config_path.removesuffix(".yaml").removeprefix(f"{_GROUP}/")
