"""``tune.sampler=tpe``: points that follow from the scores before them, by Optuna's TPE.

The tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011) tries what lies where good
points are dense and bad ones are not. Its points differ between methods, between data sets and
between versions of Optuna, and one search is a chain: for tables at equal budgets the sequence that
is the same for everyone is the better choice, and stays the default. A search is rebuilt from its
scores alone: the sampler is made anew for each point, with a seed that is the point's number.
"""

from __future__ import annotations

from collections.abc import Sequence

from vpeft_bench.tuning.space import Coordinates

START = 4
"""Points that are those of the sequence, as there is little to follow from."""


def following(
    used: Sequence[bool], tried: Sequence[tuple[Coordinates, float | None]]
) -> Coordinates:
    """Where the next point lies.

    Args:
        used: which coordinates are searched; the others are 0.
        tried: of every point before it, where it lies and how good it is; None of one without a
            score, which counts as worse than any that has one.
    """
    import optuna  # takes a second

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = [f"u{number}" for number, is_used in enumerate(used) if is_used]
    ranges: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names
    }
    gains = [gain for _, gain in tried if gain is not None]
    worse = min(gains, default=0.0) - 1.0
    sampler = optuna.samplers.TPESampler(seed=len(tried), n_startup_trials=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for at, gain in tried:
        params = {name: at[int(name[1:])] for name in names}
        value = worse if gain is None else gain
        trial = optuna.trial.create_trial(params=params, distributions=ranges, value=value)
        study.add_trial(trial)
    found = study.ask(ranges).params
    below_one = 1.0 - 2.0**-20
    return tuple(min(found.get(f"u{number}", 0.0), below_one) for number in range(len(used)))
