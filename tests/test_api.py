"""What is exported has a Case, a page, a docstring with all its parts, and types."""

import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import optax_heavytail as oht
from tests.registry import CASES

ROOT = pathlib.Path(__file__).parent.parent

# What is public is callable, but for two modules.
FUNCTIONS = [name for name in oht.__all__ if inspect.isfunction(getattr(oht, name))]
MODULES = ["aggregation", "diagnostics"]
STATES = [name for name in oht.__all__ if inspect.isclass(getattr(oht, name))]


def _returns(name):
    return str(inspect.signature(getattr(oht, name)).return_annotation)


FACTORIES = [name for name in FUNCTIONS if "GradientTransformation" in _returns(name)]


def test_all_names_are_there_sorted_and_nothing_else_is_public():
    assert list(oht.__all__) == sorted(oht.__all__)
    public = {name for name in vars(oht) if not name.startswith("_")}
    # Of the namespaces those are there that something has imported.
    assert public - {"testing"} | set(MODULES) == set(oht.__all__)
    assert {*oht.__all__, "testing"} == set(dir(oht))
    assert set(oht.__all__) == {*FUNCTIONS, *STATES, *MODULES}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_has_a_case(name):
    assert getattr(oht, name) in {case.factory for case in CASES.values()}


def test_the_factories_are_the_transforms():
    assert len(FACTORIES) == 36
    made = {type(case.make()).__name__ for case in CASES.values()}
    assert made == {"GradientTransformationExtraArgs"}


@pytest.mark.parametrize("name", oht.__all__)
def test_every_name_is_on_an_api_page(name):
    folder = ROOT / "docs" / "api"
    pages = [p for end in ("md", "rst") for p in folder.rglob(f"*.{end}")]
    assert pages
    pattern = re.compile(rf"(?<![\w.])(optax_heavytail\.)?{name}(?!\w)")
    assert any(pattern.search(page.read_text(encoding="utf-8")) for page in pages)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_have_all_their_parts(name):
    function = getattr(oht, name)
    text = inspect.getdoc(function)
    assert text
    assert "Returns:" in text
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  {argument}: \S", text, re.MULTILINE), argument
    if name in FACTORIES:
        assert "Raises:" in text
        assert "Example:" in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_everything_is_annotated(name):
    signature = inspect.signature(getattr(oht, name))
    assert signature.return_annotation is not signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter


# The names, order and defaults that users have typed.
SIGNATURES = {
    "clip_by_moment": "inner=None, *, b2=0.99, alpha=1.0, eps=1e-05, "
    "scope='coordinate', threshold_dtype=None, bias_correction=None, "
    "normalize=False, axis_name=None",
    "adaptive_coordinate_threshold": "b2=0.99, alpha=1.0, *, threshold_dtype=None",
    "scale_by_acclip": "b1=0.9, b2=0.99, alpha=1.0, eps=1e-05, *, "
    "bias_correction=None, normalize=False, mu_dtype=None, threshold_dtype=None",
    "acclip": "learning_rate, b1=0.9, b2=0.99, alpha=1.0, eps=1e-05, "
    "weight_decay=1e-05, mask=None, *, bias_correction=None, normalize=False, "
    "mu_dtype=None, threshold_dtype=None",
    "clip_by_norm": "threshold, *, scope='global', nonfinite='propagate', "
    "axis_name=None",
    "clip_by_value": "threshold",
    "gclip": "learning_rate, threshold, b1=0.9, weight_decay=0.0, mask=None, *, "
    "bias_correction=False, mu_dtype=None, axis_name=None",
    "cclip": "learning_rate, threshold, b1=0.9, weight_decay=0.0, mask=None, *, "
    "bias_correction=False, mu_dtype=None",
    "ema": "decay, debias=False, accumulator_dtype=None",
    "add_decayed_weights": "weight_decay=0.0, mask=None",
    "scale_by_learning_rate": "learning_rate, *, flip_sign=True",
    "weighted_iterate_average": "inner",
    "weighted_iterate_average_eval_params": "state, params",
    "strongly_convex_step": "mu",
    "clipping_threshold": "moment_bound, tail_order",
    "nonconvex_step": "scale, num_steps, tail_order",
    "nonconvex_threshold": "scale, num_steps, tail_order",
    "get_threshold": "state",
    "get_momentum": "state",
    "decay_mask": "params",
    "mask_coverage": "mask, params",
    "skip_if_unsafe": "inner, *, max_deviations=10.0, window=128, max_in_a_row=10, "
    "axis_name=None",
    "stack_leaves": "inner, labels='all'",
    "trace": "decay, nesterov=False, accumulator_dtype=None",
    "scale_by_adam": "b1=0.9, b2=0.999, eps=1e-08, *, bias_correction=True, "
    "mu_dtype=None, nu_dtype=None",
    "adamw_decoupled": "learning_rate, b1=0.9, b2=0.999, eps=1e-08, weight_decay=0.0, "
    "multiplier=1.0, bias_correction=True, *, mask=None",
    "scale_by_amsgrad": "b1=0.9, b2=0.999, eps=1e-08, *, bias_correction=False",
    "amsgrad": "learning_rate, b1=0.9, b2=0.999, eps=1e-08, bias_correction=False",
    "scale_by_adashift": "b1=0.9, b2=0.999, eps=1e-10, n=10",
    "adashift": "learning_rate, b1=0.9, b2=0.999, eps=1e-10, n=10",
    "scale_by_powersign": "b1=0.9, base=2.718281828459045, decay=None",
    "scale_by_addsign": "b1=0.9, alpha=1.0, decay=None",
    "powersign": "learning_rate, b1=0.9, base=2.718281828459045, decay=None",
    "addsign": "learning_rate, b1=0.9, alpha=1.0, decay=None",
    "clipped_gd": "learning_rate, max_update_norm, *, axis_name=None",
    "normalize_by_norm": "offset=1e-08, *, axis_name=None",
    "normalized_gd": "learning_rate, offset=1e-08, momentum=0.0, *, axis_name=None",
    "scale_by_clipped_trust_ratio": "lower=0.0, upper=1.0, *, layer_axis=None, "
    "mask=None, axis_name=None, trust_coefficient=1.0, eps=0.0",
    "lambc": "learning_rate, b1=0.9, b2=0.999, eps=1e-06, weight_decay=0.0, mask=None,"
    " *, trust_ratio_bounds=(0.0, 1.0), bias_correction=False, max_grad_norm=None, "
    "trust_ratio_mask=None, layer_axis=None, mu_dtype=None, nu_dtype=None, "
    "axis_name=None",
    "larsc": "learning_rate, weight_decay=0.0, mask=None, *, trust_coefficient=0.001, "
    "trust_ratio_bounds=(0.0, 1.0), momentum=0.9, nesterov=False, "
    "trust_ratio_mask=None, eps=0.0, layer_axis=None, axis_name=None",
    "sgdw": "learning_rate, momentum=0.9, weight_decay=0.0, multiplier=1.0, *, "
    "mask=None",
    "neumann": "learning_rate, *, cubic=1e-07, repulsive=1e-05, "
    "repulsive_scale='leaves', ema_decay=0.99, momentum=None, burn_in_steps=0, "
    "reset_interval=None, reset_growth=2, axis_name=None",
    "neumann_eval_params": "state, params",
    "neumann_inner_loop": "learning_rate, num_inner_steps, *, convexify=None, "
    "fresh_batches=False, use_hvp=False",
    "neumann_two_loop": "learning_rate, num_inner_steps, *, outer_learning_rate=None, "
    "convexify=None, fresh_batches=False, use_hvp=False",
    "snapshot_ensemble": "inner, num_snapshots, *, t_0, t_mult=1",
    "snapshot_predictions": "state, predict_fn",
    "warm_restarts": "max_value, t_0, t_mult=1, min_value=0.0",
    "transformer_schedule": "model_dim, warmup_steps, scale=1.0",
    "grow_batch": "learning_rate, num_steps, batch_size, max_batch_size, *, "
    "multiple_of=1",
    "neumann_momentum": "minimum=0.5, maximum=0.9",
    "get_trust_ratio": "state, *, raw=False",
}


def test_every_signature_is_written_down():
    assert set(SIGNATURES) == set(FUNCTIONS)


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    signature = inspect.signature(getattr(oht, name))
    bare = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
    ]
    assert str(inspect.Signature(bare)) == f"({SIGNATURES[name]})"


FIELDS = {
    "BatchSizePlan": ("learning_rate", "batch_size"),
    "NeumannInnerLoopState": ("count",),
    "NeumannState": (
        "count",
        "next_reset",
        "interval",
        "mu",
        "momentum",
        "average",
    ),
    "ScaleByAdashiftState": ("count", "nu", "window"),
    "ScaleByClippedTrustRatioState": ("count", "trust_ratio", "raw_trust_ratio"),
    "ScaleBySignAgreementState": ("count", "ema"),
    "SkipIfUnsafeState": (
        "count",
        "num_nonfinite",
        "num_spikes",
        "num_in_a_row",
        "limit_reached",
        "num_norms",
        "log_norms",
        "inner_state",
    ),
    "StochasticRoundingState": ("key", "inner_state"),
    "SnapshotEnsembleState": ("count", "taken", "snapshots", "inner_state"),
    "AdaptiveCoordinateThresholdState": ("count", "threshold"),
    "AddDecayedWeightsState": ("count",),
    "ClipByMomentState": ("count", "threshold", "inner_state"),
    "ClipByNormState": ("count",),
    "ClipByValueState": ("count",),
    "MaskCoverage": ("leaves", "total_leaves", "parameters", "total_parameters"),
    "WeightedIterateAverageState": ("count", "average", "inner_state"),
}


def test_fields_of_the_states():
    assert {name: getattr(oht, name)._fields for name in STATES} == FIELDS


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", oht.__version__)


def test_importing_brings_jax_and_optax_and_nothing_else():
    """And it starts no backend, so that a script can still choose one."""
    code = (
        "import sys, jax, optax; before = {*sys.modules}; import optax_heavytail; "
        "new = {*sys.modules} - before; own = {x for x in new if x[:5] == 'optax'}; "
        "assert new == own, new - own; namespaces = 'aggregation diagnostics testing'; "
        "assert not {f'optax_heavytail.{x}' for x in namespaces.split()} & own; "
        "optax_heavytail.diagnostics.monitor; optax_heavytail.testing.examine"
    )
    env = os.environ | {"JAX_PLATFORMS": "none_such"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)
