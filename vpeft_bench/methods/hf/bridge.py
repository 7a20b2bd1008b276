"""The bridge to the peft library: ``method=hf/lora`` and every other type that fits timm models.

The library's tuner puts its layers in the place of the targeted linears; all else (what is trained,
stored, merged and given back) is the contract of every method here. Nothing of peft is imported
before a name with the prefix ``hf/`` is asked for.
"""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.backbones.joined import JoinedLinear
from vpeft_bench.errors import (
    MethodOptionError,
    MissingExtraError,
    NotMergeableError,
    Problem,
    UnsupportedBackboneError,
    unknown_name,
)
from vpeft_bench.methods.base import Category, Method, option
from vpeft_bench.methods.hf.limits import misfits
from vpeft_bench.methods.hf.types import (
    INSTALL,
    OFFERED,
    PREFIX,
    HfType,
    Start,
    installed,
    names,
    why_not_offered,
)
from vpeft_bench.methods.registry import MethodSource, register_source

ADAPTER = "default"
"""The library can hold several adapters by name; here there is one."""

Pattern = Callable[[Iterable[str]], str]
"""Targets to a regular expression for the full names of their modules."""

_REFUSALS = (ValueError, TypeError, NotImplementedError)
"""What the library raises for options or layers that it cannot take."""


@dataclass
class HfMethod(Method):
    """An adapter of the peft library on the linears (or norms) that ``targets`` names.

    Options and defaults are those of the library's config class.
    """

    targets: list[str]

    kind: ClassVar[str]
    facts: ClassVar[HfType]

    # ---- the library ---------------------------------------------------------------------------

    def config_options(self, pattern: Pattern) -> dict[str, Any]:
        """The arguments of the library's config class."""
        options = self.options()
        targets = options.pop("targets")
        return {**options, **self.facts.fixed, "target_modules": pattern(targets)}

    def config(self, pattern: Pattern) -> Any:
        """The library's config.

        Raises:
            ValueError, TypeError: it refuses the options.
        """
        return _library_class("CONFIG", self.kind)(**self.config_options(pattern))

    def leaves(self, backbone: Backbone) -> list[nn.Module]:
        """What is adapted, in the order of the blocks."""
        return [block.leaf(target) for block in backbone.blocks for target in self.targets]

    def pattern(self, backbone: Backbone, targets: Iterable[str]) -> str:
        """Full names of ``targets`` in every block.

        The end of a name alone would not do: ``proj`` is also the patch embedding.
        """
        targets = list(targets)
        leaves = [block.leaf(target) for block in backbone.blocks for target in targets]
        return "|".join(re.escape(backbone.path(leaf)) for leaf in leaves)

    def conflicts(self) -> Iterator[Problem]:
        """What the config class itself refuses."""
        try:
            with _quiet():
                self.config(lambda targets: "nothing")
        except _REFUSALS as error:
            yield Problem(f"method={self.name}", " ".join(str(error).split()))

    # ---- placing -------------------------------------------------------------------------------

    def check(self, backbone: Backbone) -> None:
        """Also refuse options that do not fit the widths of the linears."""
        super().check(backbone)
        leaves = self.leaves(backbone)
        linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]
        if wrong := misfits(self.options(), self.limits(), linears):
            raise UnsupportedBackboneError(f"method {self.name}: " + "\n".join(wrong))

    def limits(self) -> dict[str, str]:
        """Rule by option that the widths of the linears set."""
        return dict(self.facts.limits)

    def place(self, backbone: Backbone) -> None:
        """Let the library's tuner wrap the leaves."""
        leaves = self.leaves(backbone)
        config = self.config(functools.partial(self.pattern, backbone))
        head = {p: p.requires_grad for p in backbone.head.parameters()}
        try:
            with _quiet(), backbone.replacing(leaves):
                tuner_class = _library_class("TUNER", self.kind)
                backbone.guest = tuner_class(backbone.model, config, adapter_name=ADAPTER)
                for layer in map(backbone.model.get_submodule, map(backbone.path, leaves)):
                    _hold_state(layer)
        except _REFUSALS as error:
            raise UnsupportedBackboneError(
                f"method {self.name}: the peft library refuses: {' '.join(str(error).split())}"
            ) from error
        finally:
            vars(backbone.model).pop("peft_config", None)
            for parameter, required_grad in head.items():  # the tuner freezes all that is not its
                parameter.requires_grad_(required_grad)

    def parameter_count(self, backbone: Backbone) -> int | None:
        """Known for LoRA only; the other types are counted when they are attached."""
        return None

    @property
    def start(self) -> Start:
        """What the model computes before training, with these options."""
        for name, values in self.facts.starts.items():
            if (value := getattr(self, name)) in values:
                return values[value]
        return self.facts.start

    @property
    def identity_at_start(self) -> bool:
        """Whether nothing is changed, not even by rounding."""
        return self.start is Start.SAME

    # ---- merging -------------------------------------------------------------------------------

    def obstacles(self, backbone: Backbone) -> Iterator[str]:
        """None that is known before: :meth:`merge` changes everything or nothing."""
        return iter(())

    @torch.no_grad()
    def merge(self, backbone: Backbone) -> None:
        """The library merges a copy of each layer in float64; then all weights are taken over."""
        merged: list[tuple[Tensor, Tensor]] = []
        whole: list[tuple[JoinedLinear, nn.Linear]] = []
        for placement in backbone.placements:
            leaf = placement.host
            layer: Any = copy.deepcopy(placement.module)
            if isinstance(leaf, JoinedLinear):
                whole.append((leaf, plain := leaf.plain()))
                leaf, layer.base_layer = plain, copy.deepcopy(plain)
            layer = layer.double()
            try:
                layer.merge()
            except (*_REFUSALS, RuntimeError) as error:
                raise NotMergeableError(
                    f"method {self.name} cannot be merged: {placement.path}: {error}"
                ) from error
            folded = dict(layer.get_base_layer().named_parameters())
            parameter: Tensor
            for name, parameter in leaf.named_parameters():
                merged.append((parameter, folded.pop(name).to(parameter.dtype)))
            if folded:
                raise NotMergeableError(
                    f"method {self.name} cannot be merged: {placement.path} has no "
                    f"{' and no '.join(folded)} to fold it into"
                )
        values = dict(merged)
        for joined, plain in whole:
            bias = None if plain.bias is None else values[plain.bias]
            if obstacle := joined.obstacle(bias):
                raise NotMergeableError(f"method {self.name} cannot be merged: {obstacle}")
        for parameter, value in merged:
            parameter.copy_(value)
        for joined, plain in whole:
            joined.take(plain)


def _library_class(role: str, kind: str) -> Any:
    """The library's ``CONFIG`` or ``TUNER`` class of a type; None where it has no such type."""
    import peft.mapping

    return getattr(peft.mapping, f"PEFT_TYPE_TO_{role}_MAPPING").get(kind.upper())


def _hold_state(layer: nn.Module) -> None:
    """Make all tensors that ``layer`` computes with part of its state.

    Some types keep random indices in plain dicts, some use modules of the tuner, and some leave out
    of the state what follows from the weights by a decomposition, which another machine may do with
    other signs. As buffers, all of it follows the model to its device, and a delta is exact on any
    machine.
    """
    from peft.tuners._buffer_dict import BufferDict

    for name, value in list(vars(layer).items()):
        if isinstance(value, nn.Module):
            delattr(layer, name)
            setattr(layer, name, value)
        elif isinstance(value, dict) and isinstance(value.get(ADAPTER), Tensor):
            delattr(layer, name)
            setattr(layer, name, BufferDict(value, persistent=True))
    for module in layer.modules():
        if isinstance(module, BufferDict):
            module.persistent = True
            module._non_persistent_buffers_set.clear()


class _quiet(warnings.catch_warnings):
    """The library warns about transformers models, quantised layers and tied embeddings."""

    def __enter__(self) -> None:  # type: ignore[override]
        super().__enter__()
        warnings.simplefilter("ignore")


# ---- names ---------------------------------------------------------------------------------------


@functools.cache
def method_class(kind: str) -> type[Method]:
    """The method for the library's type ``kind``, made from its config class.

    Raises:
        MethodOptionError: there is no such type, or it is not offered here, with the reason.
        MissingExtraError: the library is not installed.
    """
    name = f"{PREFIX}{kind}"
    if kind not in OFFERED:
        if reason := why_not_offered(name):
            raise MethodOptionError([Problem(f"method={name}", f"is not offered: {reason}")])
        raise MethodOptionError([unknown_name("method", name, names())])
    if not installed():
        raise MissingExtraError(
            [Problem(f"method={name}", "the peft library is not installed", INSTALL)]
        )
    from vpeft_bench.methods.hf.options import option_fields
    from vpeft_bench.methods.hf.special import SPECIAL

    config_class = _library_class("CONFIG", kind)
    if config_class is None:
        what = f"the installed peft {importlib.metadata.version('peft')} does not have it"
        raise MissingExtraError([Problem(f"method={name}", what, INSTALL)])
    facts = OFFERED[kind]
    base = SPECIAL.get(kind, HfMethod)
    help_text = "linears that are adapted, in every block"
    if facts.targets != ("qkv", "proj", "fc1", "fc2"):
        help_text = "norms that are trained, in every block"
    targets = option(list(facts.targets), help_text, choices=facts.targets)
    made = make_dataclass(
        f"Hf{config_class.__name__.removesuffix('Config')}",
        [("targets", list[str], targets), *option_fields(config_class, facts)],
        bases=(base,),
        namespace={
            "__doc__": base.__doc__,
            "__module__": __name__,
            "name": name,
            "title": facts.title,
            "arxiv": facts.arxiv,
            "source": "; ".join(filter(None, [facts.source, f"{config_class.__name__} of peft"])),
            "category": Category(facts.category),
            "idea": facts.idea,
            "deviations": facts.notes,
            "needs": facts.needs,
            "not_mergeable": facts.not_mergeable,
            "kind": kind,
            "facts": facts,
        },
    )
    return made


register_source(MethodSource(PREFIX, names, method_class))
