"""Types of the peft library that need more than being placed."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vpeft_bench.backbones.block_map import Backbone
from vpeft_bench.errors import MethodOptionError, Problem
from vpeft_bench.methods.base import option
from vpeft_bench.methods.hf.bridge import ADAPTER, HfMethod, Pattern
from vpeft_bench.methods.hf.types import LINEARS, Start

TAKES_FROM_WEIGHT = ("olora", "pissa", "pissa_niter_4", "pissa_niter_16")


@dataclass
class HfLoRA(HfMethod):
    """W x + s B A x on the linears that ``targets`` names; s is lora_alpha / r.

    Options and defaults are those of the library's config class.
    """

    def rewritten(self, backbone: Backbone) -> Iterable[nn.Parameter]:
        """The weights, where the initial B A is taken out of them."""
        if self.options()["init_lora_weights"] not in TAKES_FROM_WEIGHT:
            return ()
        return [leaf.get_parameter("weight") for leaf in self.leaves(backbone)]

    def limits(self) -> dict[str, str]:
        """A decomposition has no more directions than the weight."""
        init = self.options()["init_lora_weights"]
        return {"r": "at most both"} if init in (*TAKES_FROM_WEIGHT, "mica") else {}

    def parameter_count(self, backbone: Backbone) -> int | None:
        """r (in + out) per linear, and one number per output for DoRA and for lora_bias."""
        options = self.options()
        if options["init_lora_weights"] == "mica":
            return None
        rank: int = options["r"]
        per_output = int(options["use_dora"]) + int(options["lora_bias"])
        linears = [block.linear(target) for block in backbone.blocks for target in self.targets]
        return sum(
            rank * (linear.in_features + linear.out_features) + per_output * linear.out_features
            for linear in linears
        )


@dataclass
class HfAdaLoRA(HfMethod):
    """W x + s P E Q x, with entries of the diagonal E pruned in training.

    Options and defaults are those of the library's config class.
    """

    def config_options(self, pattern: Pattern) -> dict[str, Any]:
        """With a length of training that is corrected before the first step."""
        options = super().config_options(pattern)
        return options | {"total_step": options["tinit"] + options["tfinal"] + 1}

    def before_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """Tell the schedule of the budget how long training is."""
        config = backbone.guest.peft_config[ADAPTER]
        if config.tinit + config.tfinal >= steps:
            what = f"leaves no step to allocate ranks in: the run has {steps} steps"
            where = f"method.tinit={config.tinit} method.tfinal={config.tfinal}"
            raise MethodOptionError([Problem(where, what, "their sum must be less")])
        config.total_step = steps

    def after_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """Note the importance of every rank, and prune as the schedule says."""
        backbone.guest.update_and_allocate(step + 1)

    def step_state(self, backbone: Backbone) -> dict[str, Any]:
        """The averages of importance, and which ranks are left."""
        allocator = backbone.guest.rankallocator
        state = {name: dict(getattr(allocator, name)) for name in _IMPORTANCE}
        return {**state, "rank_pattern": backbone.guest.peft_config[ADAPTER].rank_pattern}

    def load_step_state(self, backbone: Backbone, state: dict[str, Any]) -> None:
        """Go on from :meth:`step_state`."""
        device = next(backbone.model.parameters()).device
        for name in _IMPORTANCE:
            averages = {key: tensor.to(device) for key, tensor in state[name].items()}
            setattr(backbone.guest.rankallocator, name, averages)
        backbone.guest.peft_config[ADAPTER].rank_pattern = state["rank_pattern"]

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """orth_reg_weight times the mean of |P^T P - 1| and |Q Q^T - 1| (Frobenius)."""
        weight: float = self.options()["orth_reg_weight"]
        if not weight:
            return None
        layers = [cast(Any, placement.module) for placement in backbone.placements]
        factors = [layer.lora_A[ADAPTER] for layer in layers]
        factors += [layer.lora_B[ADAPTER].T for layer in layers]
        identity = torch.eye(len(factors[0]), dtype=factors[0].dtype, device=factors[0].device)
        distances = [torch.linalg.norm(factor @ factor.T - identity) for factor in factors]
        return weight * torch.stack(distances).mean()


_IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass
class HfAdaMSS(HfMethod):
    """Low-rank updates within clusters of the rows of each weight.

    Options and defaults are those of the library's config class.
    """

    def place(self, backbone: Backbone) -> None:
        """On the CPU: another device would find other clusters, and another delta."""
        device = next(backbone.model.parameters()).device
        backbone.model.to("cpu")
        try:
            super().place(backbone)
        finally:
            backbone.model.to(device)

    def after_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """Note the importance of every update, and freeze as the schedule says."""
        backbone.guest.update_and_allocate(step + 1)

    def step_state(self, backbone: Backbone) -> dict[str, Any]:
        """The averages of importance, and which updates are still trained."""
        if not self.options()["use_asa"]:
            return {}
        layers = [placement.module for placement in backbone.placements]
        averages = [[getattr(layer, name)[ADAPTER] for name in _AVERAGES] for layer in layers]
        trained = [[p.requires_grad for p in layer.parameters()] for layer in layers]
        return {"averages": averages, "trained": trained}

    def load_step_state(self, backbone: Backbone, state: dict[str, Any]) -> None:
        """Go on from :meth:`step_state`."""
        device = next(backbone.model.parameters()).device
        layers = [placement.module for placement in backbone.placements]
        for layer, averages, trained in zip(
            layers, state["averages"], state["trained"], strict=True
        ):
            for name, values in zip(_AVERAGES, averages, strict=True):
                getattr(layer, name)[ADAPTER] = [v if v is None else v.to(device) for v in values]
            for parameter, required_grad in zip(layer.parameters(), trained, strict=True):
                parameter.requires_grad_(required_grad)


@dataclass
class HfBOFT(HfMethod):
    """R W with a block-diagonal orthogonal matrix R, outputs scaled.

    Options and defaults are those of the library's config class.
    """

    def place(self, backbone: Backbone) -> None:
        """Without the library's CUDA extension: one butterfly factor has no use for it.

        The library would compile it on attaching, and try again for every layer where that fails.
        """
        from peft.tuners.boft import layer as library

        extension, library._FBD_CUDA = library._FBD_CUDA, False
        try:
            super().place(backbone)
        finally:
            library._FBD_CUDA = extension


@dataclass
class HfHRA(HfMethod):
    """W times a chain of r Householder reflections.

    Options and defaults are those of the library's config class.
    """

    def conflicts(self) -> Iterator[Problem]:
        """Equal reflections cannot be made orthogonal to each other."""
        yield from super().conflicts()
        rank = self.options()["r"]
        if self.options()["apply_GS"] and rank % 2 == 0:
            what = "starts in pairs of equal reflections, of which Gram-Schmidt makes 0 / 0"
            fix = f"method.r={rank + 1}, or method.apply_GS=false"
            yield Problem(f"method.r={rank} method.apply_GS=true", what, fix)

    @property
    def start(self) -> Start:
        """Reflections cancel in pairs."""
        return Start.CHANGED if self.options()["r"] % 2 else super().start


@dataclass
class HfMiSS(HfMethod):
    """One trained update for all shards of a weight.

    Options and defaults are those of the library's config class.
    """

    def limits(self) -> dict[str, str]:
        """Two of the variants cut the weight into equal parts."""
        if self.options()["init_weights"] == "bat":
            return {"r": "divides both"}
        mini = self.options()["init_weights"] == "mini"
        return super().limits() | ({"mini_r": "divides out"} if mini else {})


@dataclass
class HfOSF(HfMethod):
    """The smaller singular values of each weight, trained with their vectors.

    Options and defaults are those of the library's config class.
    """

    def place(self, backbone: Backbone) -> None:
        """With a projection of the gradients that also works under autocast."""
        super().place(backbone)
        self._project(backbone)

    def before_step(self, backbone: Backbone, step: int, steps: int) -> None:
        """A deep copy of a model has no gradient hooks: they are put on again."""
        self._project(backbone)

    def _project(self, backbone: Backbone) -> None:
        for placement in backbone.placements:
            layer: Any = placement.module
            factors = layer.osf_svd_params[ADAPTER]
            if layer.hook_handles or not factors["U_low"]._backward_hooks:
                layer._detach_hooks()  # the library's own
                factors["U_low"].register_hook(functools.partial(_project_left, layer))
                factors["V_low"].register_hook(functools.partial(_project_right, layer))


def _project_left(layer: Any, gradient: Tensor) -> Tensor:
    """(1 - U U^T) G for the frozen left vectors U; of a square U the complement is at hand."""
    with torch.autocast(gradient.device.type, enabled=False):
        if ADAPTER in layer._osf_U_high:
            frozen: Tensor = layer._osf_U_high[ADAPTER]
            return gradient - frozen @ (frozen.T @ gradient)
        free: Tensor = layer._osf_U_low_init[ADAPTER]
        return free @ (free.T @ gradient)


def _project_right(layer: Any, gradient: Tensor) -> Tensor:
    """G (1 - V^T V) for the frozen right vectors, the rows of V."""
    with torch.autocast(gradient.device.type, enabled=False):
        if ADAPTER in layer._osf_V_high:
            frozen: Tensor = layer._osf_V_high[ADAPTER]
            return gradient - (gradient @ frozen.T) @ frozen
        free: Tensor = layer._osf_V_low_init[ADAPTER]
        return (gradient @ free.T) @ free


_AVERAGES = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")


@dataclass
class HfIA3(HfMethod):
    """l * (W x) on the linears that ``targets`` names, W (l * x) on ``feedforward_modules``."""

    feedforward_modules: list[str] = option(
        ["fc2"],
        "those of the targets whose input is scaled, not their output; fc2 as in the paper",
        choices=LINEARS,
    )

    def config_options(self, pattern: Pattern) -> dict[str, Any]:
        """With full names for the feed-forward modules too."""
        scaled_at_input = [name for name in self.feedforward_modules if name in self.targets]
        options = super().config_options(pattern)
        return options | {"feedforward_modules": pattern(scaled_at_input)}


SPECIAL: dict[str, type[HfMethod]] = {
    "adalora": HfAdaLoRA,
    "adamss": HfAdaMSS,
    "boft": HfBOFT,
    "hra": HfHRA,
    "ia3": HfIA3,
    "lora": HfLoRA,
    "miss": HfMiSS,
    "osf": HfOSF,
}
