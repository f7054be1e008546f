"""All oracles by the name of their factory, and all cases."""

from tests.oracles import (
    clip_by_history,
    clip_by_norm_deviation,
    clip_by_norm_ema,
    clip_by_norm_quantile,
    clip_by_zscore,
    parts,
    skip_if_unsafe,
    trajectories,
)

MODULES = (
    parts,
    clip_by_history,
    skip_if_unsafe,
    clip_by_norm_ema,
    clip_by_norm_quantile,
    clip_by_zscore,
    clip_by_norm_deviation,
)
ORACLES = {name: make for module in MODULES for name, make in module.ORACLES.items()}
CASES = [case for module in MODULES for case in module.CASES]


def build(spec):
    """The oracle of ``{"factory": ..., "kwargs": ...}``, inner ones built first."""
    kwargs = {
        name: build(value) if isinstance(value, dict) and "factory" in value else value
        for name, value in spec.get("kwargs", {}).items()
    }
    return ORACLES[spec["factory"]](*map(build, spec.get("args", ())), **kwargs)


def all_trajectories():
    for case in CASES:
        for family in case.families.split():
            yield trajectories.trajectory(case, family, build)
