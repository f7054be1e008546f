"""A conformance kit for gradient transformations, of this package or any other.

from optax_heavytail import testing

def test_my_transform():
    kwargs = {"learning_rate": 0.1}
    testing.check_transformation(mine(**kwargs), factory=mine, kwargs=kwargs)
"""

from optax_heavytail.testing._check import (
    DEFAULT_LAWS,
    OPTIONAL_LAWS,
    check_transformation,
    examine,
)
from optax_heavytail.testing._jax_laws import (
    check_grad,
    check_jit,
    check_scan,
    check_vmap,
)
from optax_heavytail.testing._long_laws import check_many_steps, check_two_models
from optax_heavytail.testing._optax_laws import (
    check_extra_args,
    check_injected,
    check_missing_params,
    check_multi_steps,
)
from optax_heavytail.testing._optional_laws import (
    check_float16,
    check_grad_at_zero,
    check_huge,
    check_inf,
    check_leaf_separable,
    check_mixed_dtypes,
    check_nan,
    check_never_increases_norm,
    check_odd,
    check_permutation_equivariant,
    check_scale_equivariant,
)
from optax_heavytail.testing._run import Outcome, Report
from optax_heavytail.testing._state_laws import (
    check_abstract,
    check_arrays,
    check_donated,
    check_numpy,
    check_one_trace,
    check_pure,
    check_stable,
    check_zero,
)
from optax_heavytail.testing._tree_laws import (
    check_empty,
    check_masked,
    check_none,
    check_partition,
    check_scalar,
    check_sharding,
)

__all__ = [
    "DEFAULT_LAWS",
    "OPTIONAL_LAWS",
    "Outcome",
    "Report",
    "check_abstract",
    "check_arrays",
    "check_donated",
    "check_empty",
    "check_extra_args",
    "check_float16",
    "check_grad",
    "check_grad_at_zero",
    "check_huge",
    "check_inf",
    "check_injected",
    "check_jit",
    "check_leaf_separable",
    "check_many_steps",
    "check_masked",
    "check_missing_params",
    "check_mixed_dtypes",
    "check_multi_steps",
    "check_nan",
    "check_never_increases_norm",
    "check_none",
    "check_numpy",
    "check_odd",
    "check_one_trace",
    "check_partition",
    "check_permutation_equivariant",
    "check_pure",
    "check_scalar",
    "check_scale_equivariant",
    "check_scan",
    "check_sharding",
    "check_stable",
    "check_transformation",
    "check_two_models",
    "check_vmap",
    "check_zero",
    "examine",
]
