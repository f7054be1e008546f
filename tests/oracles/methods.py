"""All oracles by the name of their factory, and all cases."""

import functools

from tests.oracles import (
    atan2,
    cautious,
    clip_by_history,
    clip_by_interval,
    clip_by_moment,
    clip_by_norm_deviation,
    clip_by_norm_ema,
    clip_by_norm_quantile,
    clip_by_rms,
    clip_by_zscore,
    clipped_ema,
    conditional_gradient,
    fast_belief,
    langevin,
    normalized,
    orthogonalize,
    parts,
    qk_clip,
    rules,
    saga,
    skip_if_unsafe,
    smooth,
    spam,
    spectral,
    stable_adam,
    stable_norm,
    trajectories,
    votes,
)

MODULES = (
    parts,
    clip_by_history,
    skip_if_unsafe,
    clip_by_moment,
    clip_by_norm_ema,
    clip_by_norm_quantile,
    clip_by_zscore,
    clip_by_norm_deviation,
    clip_by_rms,
    stable_adam,
    cautious,
    clipped_ema,
    stable_norm,
    spam,
    normalized,
    smooth,
    atan2,
    clip_by_interval,
    fast_belief,
    orthogonalize,
    spectral,
    qk_clip,
    votes,
    saga,
    conditional_gradient,
    langevin,
    rules,
)
ORACLES = {name: make for module in MODULES for name, make in module.ORACLES.items()}
CASES = [case for module in MODULES for case in module.CASES]


def build(spec):
    """The oracle of ``{"factory": ..., "kwargs": ...}``, inner ones built first."""
    kwargs = dict(spec.get("kwargs", {}))
    for name, value in kwargs.items():
        if isinstance(value, dict) and "factory" in value:
            again = spec["factory"] == "reset_moments"  # makes its inner more than once
            kwargs[name] = functools.partial(build, value) if again else build(value)
    return ORACLES[spec["factory"]](*map(build, spec.get("args", ())), **kwargs)


def all_trajectories():
    for case in CASES:
        for family in case.families.split():
            yield trajectories.trajectory(case, family, build)
