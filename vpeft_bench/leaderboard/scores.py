"""Scores that weigh a metric against what it costs.

Their constants are choices, not facts: they are configuration, and stand beside every table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from vpeft_bench.formats import GIB, GIGA, shortest


@dataclass(frozen=True)
class Scores:
    """The constants of two scores; docs/leaderboard.md says where the defaults come from.

    PPT is that of arXiv 2402.02242. The other has the form of PSCP (arXiv 2511.21285); its costs
    and constants are ours, so its values do not compare with published ones.

    Attributes:
        ppt_parameters: trained parameters at which PPT is ``exp(-log10(2))`` times the metric.
        pscp_parameters: trained parameters at which this factor of PSCP is ``2 ** -beta``.
        pscp_gflops: the same for the GFLOPs of a training step per image.
        pscp_gib: the same for the peak memory of a training step.
        pscp_beta_parameters: weight of the parameters; 0 leaves them out.
        pscp_beta_flops: the same for the operations.
        pscp_beta_memory: the same for the memory.

    Raises:
        ValueError: a constant is not positive or a weight is negative.
    """

    ppt_parameters: float = 1e7
    pscp_parameters: float = 8.58e7
    pscp_gflops: float = 105.0
    pscp_gib: float = 8.3
    pscp_beta_parameters: float = 1.0
    pscp_beta_flops: float = 1.0
    pscp_beta_memory: float = 1.0

    def __post_init__(self) -> None:
        """Refuse constants that no score can be computed with."""
        for constant in fields(self):
            value = getattr(self, constant.name)
            weight = "_beta_" in constant.name
            if not math.isfinite(value) or value < 0 or (value == 0 and not weight):
                rule = "0 or more" if weight else "more than 0"
                raise ValueError(f"{constant.name} is {value:g}; it must be {rule}")

    def ppt(self, percent: float | None, parameters: float | None) -> float | None:
        """Performance and parameters trade-off; None where one of them is not known.

        Args:
            percent: the metric.
            parameters: trained parameters without the head.
        """
        if percent is None or parameters is None:
            return None
        return percent / 100 * math.exp(-math.log10(parameters / self.ppt_parameters + 1))

    def pscp(
        self,
        percent: float | None,
        parameters: float | None,
        training_flops: float | None,
        peak_bytes: float | None,
    ) -> float | None:
        """The metric times one factor per cost; None where one of them is not known.

        Args:
            percent: the metric.
            parameters: trained parameters without the head.
            training_flops: floating-point operations of a training step per image.
            peak_bytes: peak memory of a training step.
        """
        if percent is None or parameters is None or training_flops is None or peak_bytes is None:
            return None
        factors = (
            (parameters / self.pscp_parameters, self.pscp_beta_parameters),
            (training_flops / GIGA / self.pscp_gflops, self.pscp_beta_flops),
            (peak_bytes / GIB / self.pscp_gib, self.pscp_beta_memory),
        )
        return percent / 100 * math.prod(math.pow(1 + cost, -beta) for cost, beta in factors)

    @property
    def constants(self) -> str:
        """Every constant, as ``name=value``, for a file."""
        values = ((constant.name, getattr(self, constant.name)) for constant in fields(self))
        return " ".join(f"{name}={shortest(value)}" for name, value in values)

    @property
    def ppt_formula(self) -> str:
        """PPT with its constant, for a reader."""
        return (
            f"PPT = M exp(-log10(P / {shortest(self.ppt_parameters)} + 1)): M the metric as a "
            "fraction, P trained parameters without the head"
        )

    @property
    def pscp_formula(self) -> str:
        """The other score with its constants, for a reader."""
        factors = " ".join(
            f"(1 + {cost} / {shortest(constant)})^-{shortest(beta)}"
            for cost, constant, beta in (
                ("P", self.pscp_parameters, self.pscp_beta_parameters),
                ("F", self.pscp_gflops, self.pscp_beta_flops),
                ("R", self.pscp_gib, self.pscp_beta_memory),
            )
        )
        return f"PSCP-style = M {factors}: F training GFLOPs per image, R peak GiB"
