"""All laws on one transform."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from optax_heavytail.testing import (
    _jax_laws,
    _long_laws,
    _optax_laws,
    _optional_laws,
    _run,
    _state_laws,
    _tree_laws,
)
from optax_heavytail.testing._trial import Trial, assert_runs

#: The laws that `check_transformation` checks unless ``laws`` says otherwise.
DEFAULT_LAWS = (
    "pure",
    "arrays",
    "stable",
    "one_trace",
    "jit",
    "scan",
    "vmap",
    "grad",
    "abstract",
    "injected",
    "masked",
    "partition",
    "none",
    "empty",
    "scalar",
    "extra_args",
    "missing_params",
    "multi_steps",
    "numpy",
    "donated",
    "sharding",
    "zero",
    "many_steps",
    "two_models",
)

#: The laws that hold for some transforms only.
OPTIONAL_LAWS = (
    "grad_at_zero",
    "mixed_dtypes",
    "float16",
    "huge",
    "inf",
    "nan",
    "never_increases_norm",
    "odd",
    "scale_equivariant",
    "permutation_equivariant",
    "leaf_separable",
)


def check_transformation(
    tx: Any,
    params: Any = None,
    *,
    factory: Callable[..., Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    static_args: str | Iterable[str] = (),
    extra_args: Mapping[str, Any] | None = None,
    laws: str | Iterable[str] = DEFAULT_LAWS,
    rtol: float = 1e-4,
    max_examples: int | None = None,
) -> _run.Report:
    r"""Checks that a gradient transformation keeps the laws all others rely on.

    Each law is also a function of its own, ``check_<law>``, which says what it asks and
    takes the same arguments but ``laws``. Gradients are drawn, the same in every run,
    and shrunk when a law is broken. Two ways of computing one thing are
    compared in float32 or wider, types on the parameters as they are.

    Args:
      tx: anything with ``init`` and ``update``.
      params: floating-point leaves in a tree that ``tx`` accepts. ``None``: a dict of
        float32 and bfloat16 leaves with one scalar. Small leaves make quick checks.
      factory: the function that makes ``tx`` from ``kwargs``. Without it the laws that
        build the transform again are skipped.
      kwargs: keyword arguments of ``factory``.
      static_args: names of ``factory``'s arguments that are never arrays, such as
        dtypes and masks, as for ``optax.inject_hyperparams``.
      extra_args: keyword arguments that ``tx.update`` needs, the same at every step.
      laws: names from `DEFAULT_LAWS` and `OPTIONAL_LAWS`.
      rtol: how far two ways of computing may differ, relative to the largest entry of
        a leaf over all steps, and beyond two roundings of the largest parameter.
        Hyperparameters in float32 alone cost 6e-5: a decay of 0.999 leaves 1 - 0.999
        with so much error. A state that is narrower than float32 has two roundings
        of its own more.
      max_examples: inputs tried per law, in [1, inf). ``None``: 10, or as many as the
        loaded profile of hypothesis says. Laws that compile at every call, as they
        run outside of ``jit``, try 3 at most.

    Returns:
      A `Report`: for each law whether it was passed or skipped, and why.

    Raises:
      AssertionError: laws are broken. The message names each of these, with the
        smallest input found; its ``__cause__`` is what the transform raised. A
        transform that cannot take a step at all breaks the law ``runs``, and no other
        is looked at.
      ValueError: a law is unknown, or ``params`` has a leaf that is not real
        floating-point, or ``kwargs`` comes without ``factory``, or ``rtol`` or
        ``max_examples`` is out of range.
      TypeError: ``tx`` has no ``init`` or no ``update``.

    Example:
      >>> import optax
      >>> from optax_heavytail import testing
      >>> kwargs = {"learning_rate": 0.1, "momentum": 0.9}
      >>> report = testing.check_transformation(
      ...     optax.sgd(**kwargs), laws=["stable", "injected", "odd"]
      ... )
      >>> print(report)
      stable    passed
      injected  skipped  needs factory= (and kwargs=) to build the transform again
      odd       passed

      A transform that clips to [-1, 2] is not odd:

      >>> lopsided = optax.stateless_with_tree_map(lambda g, w: g.clip(-1, 2))
      >>> try:
      ...     testing.check_transformation(lopsided, 1.0, laws=["stable", "odd"])
      ... except AssertionError as error:
      ...     print(error)
      law 'odd' is broken: reflected, update is -1. and not -2.
        smallest input found: 1 step, gradients 0 but for step 1 = 2
    """
    __tracebackhide__ = True
    report = examine(
        tx,
        params,
        factory=factory,
        kwargs=kwargs,
        static_args=static_args,
        extra_args=extra_args,
        laws=laws,
        rtol=rtol,
        max_examples=max_examples,
    )
    _run.raise_if_broken(report)
    return report


def examine(
    tx: Any,
    params: Any = None,
    *,
    factory: Callable[..., Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    static_args: str | Iterable[str] = (),
    extra_args: Mapping[str, Any] | None = None,
    laws: str | Iterable[str] = DEFAULT_LAWS,
    rtol: float = 1e-4,
    max_examples: int | None = None,
    progress: Callable[[_run.Outcome], None] | None = None,
) -> _run.Report:
    """As `check_transformation`, with broken laws in the report in place of an error.

    Args:
      tx: as for `check_transformation`, and so are all others.
      params: the parameters.
      factory: the function that makes ``tx``.
      kwargs: its keyword arguments.
      static_args: those of them that are never arrays.
      extra_args: keyword arguments that ``tx.update`` needs.
      laws: names of laws.
      rtol: how far two ways of computing may differ.
      max_examples: inputs tried per law.
      progress: called with each `Outcome` as soon as it is known.

    Returns:
      A `Report` with every law: passed, broken or skipped.

    Raises:
      ValueError: as `check_transformation`.
      TypeError: as `check_transformation`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from optax_heavytail import testing
      >>> count = lambda updates, state, params=None: (updates, state + 1)
      >>> tx = optax.GradientTransformation(lambda params: 0, count)
      >>> print(testing.examine(tx, laws=["jit", "arrays"]))
      jit     passed
      arrays  broken   init's state is a int and not a jax array
    """
    laws = (laws,) if isinstance(laws, str) else tuple(laws)
    unknown = [law for law in laws if law not in _run.BODIES]
    if unknown or not laws:
        known = ", ".join(DEFAULT_LAWS + OPTIONAL_LAWS)
        named = ", ".join(map(repr, unknown)) or "nothing"
        raise ValueError(f"laws has {named}; the laws are {known}")
    trial = Trial(
        tx, params, factory, kwargs, static_args, extra_args or {}, rtol, max_examples
    )
    outcomes = []
    for outcome in _outcomes(trial, laws):
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome)
    return _run.Report(tuple(outcomes))


def _outcomes(trial: Trial, laws: tuple[str, ...]) -> Iterator[_run.Outcome]:
    """The outcome of each law, or of ``runs`` alone where no update goes through."""
    runs = _run.judge("runs", assert_runs, trial)
    if runs.status == _run.BROKEN:
        yield runs._replace(detail=f"cannot run: {runs.detail}")
    for law in laws:
        if runs.status == _run.BROKEN:
            yield _run.Outcome(law, _run.SKIPPED, "it cannot run")
        else:
            yield _run.judge(law, _run.BODIES[law], trial)


# Imported for the laws that they define.
_MODULES = (
    _state_laws,
    _jax_laws,
    _optax_laws,
    _tree_laws,
    _long_laws,
    _optional_laws,
)
