"""What is exported has a Case, a page, a docstring with all its parts, and types."""

import collections
import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import optax_heavytail as oht
from tests.registry import CASES, RECORDS

ROOT = pathlib.Path(__file__).parent.parent

# What is public is callable, but for four modules.
FUNCTIONS = [name for name in oht.__all__ if inspect.isfunction(getattr(oht, name))]
MODULES = ["aggregation", "diagnostics", "learned", "rules"]
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


def test_every_factory_has_one_record():
    written = [
        case.factory.__name__ for case in CASES.values() if case.signature is not None
    ]
    assert sorted(written) == FACTORIES
    assert all(RECORDS[name].factory is getattr(oht, name) for name in FACTORIES)


def test_the_factories_are_the_transforms():
    made = {type(case.make()).__name__ for case in CASES.values()}
    assert made == {"GradientTransformationExtraArgs"}


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


# Of what is no transform; the transforms' are in the registry.
SIGNATURES = {
    "weighted_iterate_average_eval_params": "state, params",
    "strongly_convex_step": "mu",
    "clipping_threshold": "moment_bound, tail_order",
    "nonconvex_step": "scale, num_steps, tail_order",
    "nonconvex_threshold": "scale, num_steps, tail_order",
    "normalized_momentum": "num_steps=None, tail_order=None, scale=1.0",
    "batch_for_normalized": "num_steps, tail_order",
    "l0l1_constants": "l0, l1, rule='simple'",
    "unroll": "tx, loss_fn, num_steps, *, truncate=None, checkpoint=True",
    "get_threshold": "state",
    "get_momentum": "state",
    "qk_clip_factors": "max_logits, threshold=100.0",
    "decompress_state": "state",
    "decay_mask": "params, *, rule=None",
    "mask_coverage": "mask, params",
    "neumann_eval_params": "state, params",
    "snapshot_predictions": "state, predict_fn",
    "warm_restarts": "max_value, t_0, t_mult=1, min_value=0.0",
    "transformer_schedule": "model_dim, warmup_steps, scale=1.0",
    "grow_batch": "learning_rate, num_steps, batch_size, max_batch_size, *, "
    "multiple_of=1",
    "neumann_momentum": "minimum=0.5, maximum=0.9",
    "get_trust_ratio": "state, *, raw=False",
} | {name: case.signature for name, case in RECORDS.items()}


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
    "MaskCoverage": ("leaves", "total_leaves", "parameters", "total_parameters"),
    "NormalizedMomentum": ("learning_rate", "momentum"),
    "StochasticRoundingState": ("key", "inner_state"),  # of every transform
}


def test_a_state_is_written_down_with_one_transform():
    owned = [name for case in CASES.values() for name in (*case.states,)]
    assert sorted([*owned, *FIELDS]) == sorted(STATES)


def test_fields_of_the_states():
    written = [FIELDS, *(case.states for case in CASES.values())]
    found = {name: getattr(oht, name)._fields for name in STATES}
    assert found == dict(collections.ChainMap(*written))


def test_the_version_is_one():
    assert re.fullmatch(r"\d+\.\d+\.\d+", oht.__version__)


def test_importing_brings_jax_and_optax_and_nothing_else():
    """And it starts no backend, so that a script can still choose one."""
    code = (
        "import sys, jax, optax; before = {*sys.modules}; import optax_heavytail; "
        "new = {*sys.modules} - before; own = {x for x in new if x[:5] == 'optax'}; "
        "assert new == own, new - own; "
        "namespaces = 'aggregation diagnostics learned rules testing'; "
        "assert not {f'optax_heavytail.{x}' for x in namespaces.split()} & own; "
        "optax_heavytail.diagnostics.monitor; optax_heavytail.testing.examine"
    )
    env = os.environ | {"JAX_PLATFORMS": "none_such"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)
