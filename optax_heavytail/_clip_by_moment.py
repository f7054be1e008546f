"""Clipping by a threshold that is learnt from the raw gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _norms, _tree
from optax_heavytail._transform import wrapper

_SCOPES = ("coordinate", "leaf", "global")


class ClipByMomentState(NamedTuple):
    """State of `clip_by_moment`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    #: tau, not corrected for its start at 0, float32 or wider or in threshold_dtype;
    #: like the parameters ("coordinate"), () per leaf ("leaf"), or one () ("global")
    threshold: Any
    #: with ``report``, of the last update, 0, 1 and 0 before the first; else ``None``:
    clipped: Any  #: (), float32, share of the entries that were clipped
    kept: Any  #: (), float32 or wider, share of the norm that was left
    raw: Any  #: like the parameters, what was clipped, in the units of the output
    inner_state: optax.OptState


def clip_by_moment(
    inner: optax.GradientTransformation | None = None,
    *,
    b2: jax.typing.ArrayLike = 0.99,
    alpha: jax.typing.ArrayLike = 1.0,
    eps: jax.typing.ArrayLike = 1e-5,
    scope: str = "coordinate",
    threshold_dtype: jax.typing.DTypeLike | None = None,
    bias_correction: bool | None = None,
    normalize: bool = False,
    include_current: bool = True,
    max_growth: jax.typing.ArrayLike | None = None,
    winsorise: jax.typing.ArrayLike | None = None,
    report: bool = False,
    axis_name: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Limits what ``inner`` makes of the gradient by a moment of the raw gradient.

    **It belongs where raw gradients arrive, and is no guard for an optimizer.** It
    compares what ``inner`` makes of a gradient with raw gradients. So ``inner`` is an
    average of these, as in ``clip_by_moment(oht.ema(0.9))``, and never an optimizer:
    ``clip_by_moment(optax.adamw(1e-3))`` compares steps of size 0.001 with gradients,
    and clips all of them or none. In front of an optimizer it clips 42% of the
    coordinates of calm Gaussian gradients, at each step. What shortens rare gradients
    that are far too large, and leaves the others as they are, is `guarded`, or
    `clip_by_history`.

    With :math:`\tau_0 = 0` and updates :math:`k \geq 1`, elementwise for the scope
    "coordinate",

    .. math::
        m_k &= \text{inner}(g_k), \\
        \tau_k^\alpha &= \beta_2 \tau_{k-1}^\alpha + (1 - \beta_2) |g_k|^\alpha, \\
        u_k &= \min\left(\frac{\tau_k}{|m_k| + \epsilon}, 1\right) m_k .

    With the scope "leaf" the absolute values are Euclidean norms of each leaf, with
    "global" the norm over all leaves, and there is one threshold for each. With
    ``bias_correction`` :math:`\hat\tau_k = \tau_k / (1 - \beta_2^k)^{1/\alpha}` takes
    the place of :math:`\tau_k` in the last line (correcting :math:`m` is up to
    ``inner``). With ``normalize`` the update is :math:`u_k / (\hat\tau_k + \epsilon)`:
    the same clip in units of the threshold, within [-1, 1].

    The literal form has the units of a gradient and takes learning rates on the scale
    of SGD's; the normalized one takes Adam's.

    As published, a gradient enters the threshold that is to stop it, and a huge one
    stays in it for about :math:`1 / (1 - \beta_2)` updates. Three options guard against
    that, with the threshold of the past,
    :math:`r_k = \tau_{k-1} / (1 - \beta_2^{k-1})^{1/\alpha}`, which is 0 and without
    effect until something was seen: ``winsorise`` shortens :math:`g_k` to at most
    :math:`c \, r_k` before anything else is done with it; ``max_growth`` lets
    :math:`\min(|g_k|, c \, r_k)` enter :math:`\tau_k`; and with
    ``include_current=False`` :math:`\tau_{k-1}` stands for :math:`\tau_k` in the last
    line, corrected alike, where it is not 0.

    Args:
      inner: makes :math:`m` of the gradient, which it receives in float32 or wider. An
        ``ema`` gives ACClip; ``None`` is the gradient itself.
      b2: :math:`\beta_2` in [0, 1), per update. 0.99 spans about 100 updates.
      alpha: order of the moment, in [1, 2]; not above the tail order of the noise, so 1
        is the safe choice. A Python 1 costs no power, a Python 2 one square root.
      eps: :math:`\epsilon` in [0, inf), in the gradient's units. Gradients far below it
        are damped; with 0, gradients scaled by :math:`c > 0` give :math:`u` scaled by
        :math:`c`.
      scope: "coordinate", "leaf" or "global".
      threshold_dtype: dtype of the threshold in the state. ``None``: the parameter's
        own, but at least float32. bfloat16 is rounded stochastically: see `ema`.
      bias_correction: whether to correct :math:`\tau` for its start at 0. ``None``: as
        ``normalize``.
      normalize: whether to divide the update by the threshold.
      include_current: whether this gradient is in the threshold that limits it.
      max_growth: how many times the threshold of the past a gradient counts as at most,
        in (0, inf); ``None``: no limit.
      winsorise: how many times the threshold of the past a gradient is at most, in
        (0, inf); 8 is a good choice. ``None``: no limit.
      report: whether the state tells what the last update took away, as
        `~optax_heavytail.diagnostics.monitor_clipping` needs it. It costs one more copy
        of the parameters and two norms.
      axis_name: for parameters sharded by hand inside ``shard_map`` or ``pmap``: the
        mesh axis to sum norms over, a tuple of axes, or a tree prefix of these with
        ``None`` for leaves that are replicated. Scope "coordinate" takes no norm.
        Nothing is needed under ``jit``.

    Returns:
      A transform with a `ClipByMomentState`, for a bfloat16 threshold inside a
      `StochasticRoundingState`. Updates keep the gradients' structure,
      shapes and dtypes. Zero gradients give what ``inner`` gives, limited by the
      decaying threshold, and 0 where the threshold is 0. Huge and tiny gradients
      neither overflow nor underflow on the way. An inf or NaN gradient does not enter
      the threshold (with ``winsorise`` and the scope "coordinate" an inf is limited
      like a large number); where :math:`m` is not finite the update is NaN, with the
      scopes "leaf" and "global" in every entry that shares the norm.

    Raises:
      ValueError: a concrete number is outside its range, or ``scope`` is unknown.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> tx = oht.clip_by_moment(b2=0.5, eps=0.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grad in ([1.0, 1.0], [1.0, 100.0]):
      ...     updates, state = tx.update(jnp.array(grad), state)
      >>> updates.tolist()  # tau is 0.75 and 50.25
      [0.75, 50.25]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020, algorithm 1 and section 5 (there with
      an average for ``inner``).
    """
    _check_numbers(b2, alpha, eps, max_growth, winsorise)
    _base.check_choice("scope", scope, _SCOPES)
    _check_flags(normalize, include_current, report, bias_correction)
    _base.check_dtype("threshold_dtype", threshold_dtype)
    inner_tx = _checked_inner(inner)
    correct = normalize if bias_correction is None else bias_correction
    is_guarded = not include_current or max_growth is not None or winsorise is not None

    def init(params):
        threshold = _first_threshold(params, scope, threshold_dtype)
        return _start(params, threshold, report, inner_tx.init(params))

    def update(updates, state, params, **extra_args):
        count = optax.safe_increment(state.count)
        grads = _tree.at_least_float32(updates)
        past = _debias(state.threshold, b2, alpha, state.count) if is_guarded else None
        sizes = magnitudes(grads, scope, axis_name)
        if winsorise is not None:
            grads = _limited(grads, sizes, _bounds(winsorise, past), scope)
            sizes = magnitudes(grads, scope, axis_name)
        if max_growth is not None:
            sizes = jax.tree.map(_finite_minimum, sizes, _bounds(max_growth, past))
        threshold = update_threshold(state.threshold, sizes, b2, alpha)
        moment, inner_state = inner_tx.update(
            grads, state.inner_state, params, **extra_args
        )
        moment = _tree.at_least_float32(moment)
        limit = _debias(threshold, b2, alpha, count) if correct else threshold
        if not include_current:
            limit = _known_or(past if correct else state.threshold, limit)
        clipped, limit = _clipped(moment, limit, eps, scope, axis_name)
        if normalize:
            clipped = _in_units(clipped, limit, eps)
        told = (None, None, None)
        if report:
            raw = _in_units(moment, limit, eps) if normalize else moment
            told = _report(raw, clipped, axis_name)
        inner_state = _tree.cast_like(inner_state, state.inner_state)
        new_state = ClipByMomentState(count, threshold, *told, inner_state)
        return _tree.cast_like(clipped, updates), new_state

    told_dtypes = dict.fromkeys(("clipped", "kept", "raw") if report else ())
    return wrapper(init, update, dtypes={"threshold": threshold_dtype} | told_dtypes)


def magnitudes(tree: Any, scope: str, axis_name: Any) -> Any:
    """The sizes of what a scope compares: one number, or a tree like ``tree``."""
    if scope == "coordinate":
        return jax.tree.map(jnp.abs, tree)
    if scope == "global":
        return _norms.global_norm(tree, axis_name).value
    norms = _norms.leaf_norms(tree, axis_name)
    return jax.tree.map(lambda norm: norm.value, norms, is_leaf=_norms.is_norm)


def _check_numbers(b2, alpha, eps, max_growth, winsorise):
    _base.check_range("b2", b2, 0.0, 1.0, high_open=True)
    _base.check_range("alpha", alpha, 1.0, 2.0)
    _base.check_range("eps", eps, 0.0, float("inf"))
    for name, factor in (("max_growth", max_growth), ("winsorise", winsorise)):
        if factor is not None:
            _base.check_range(name, factor, 0.0, float("inf"), low_open=True)


def _checked_inner(inner):
    if inner is not None:
        _base.check_transform("inner", inner)
    return optax.with_extra_args_support(inner or optax.identity())


def _check_flags(normalize, include_current, report, bias_correction):
    _base.check_flag("normalize", normalize)
    _base.check_flag("include_current", include_current)
    _base.check_flag("report", report)
    if bias_correction is not None:
        _base.check_flag("bias_correction", bias_correction)


def _first_threshold(params, scope, dtype):
    if scope == "coordinate":
        return _tree.zeros_like(params, dtype)
    # From shapes alone: inside shard_map the sum over devices does not vary with them,
    # and zeros made from the parameters' own shards would.
    shapes = jax.eval_shape(lambda p: magnitudes(p, scope, None), params)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), shapes)


def _start(params, threshold, report, inner_state):
    """The state before the first update."""
    told = (None, None, None)
    if report:
        raw = _tree.zeros_like(params)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(raw))
        told = jnp.zeros([], jnp.float32), jnp.ones([], dtype), raw
    return ClipByMomentState(jnp.zeros([], jnp.int32), threshold, *told, inner_state)


def _known_or(past, current):
    """The threshold of the past, and the current one until something was seen."""
    return jax.tree.map(lambda r, tau: jnp.where(r > 0, r, tau), past, current)


def _clipped(moment, limit, eps, scope, axis_name):
    """The moment within its limits, and the limit of each leaf."""
    factor = jax.tree.map(
        lambda tau, size: _factor(tau, size, eps),
        limit,
        magnitudes(moment, scope, axis_name),
    )
    if scope == "global":  # one number for all leaves
        factor, limit = (
            jax.tree.map(lambda _, x=x: x, moment) for x in (factor, limit)
        )
    return jax.tree.map(jnp.multiply, factor, moment), limit


def _in_units(tree, limit, eps):
    return jax.tree.map(lambda u, tau: _tree.safe_divide(u, tau + eps), tree, limit)


def is_clipped(raw: jax.Array, clipped: jax.Array) -> jax.Array:
    """Which entries were clipped: others are the same but for rounding and eps."""
    return jnp.abs(clipped) < 0.999 * jnp.abs(raw)


def _report(raw, clipped, axis_name):
    """The fields of the state that tell what was clipped."""
    axes = _norms.leaf_axes(axis_name, raw)
    # Integers: as floats ones would stop adding up at 2^24.
    flags = jax.tree.map(is_clipped, raw, clipped)
    counts = [
        _norms.psum(jnp.sum(x, dtype=jnp.int32).astype(jnp.float32), axis)
        for x, axis in zip(jax.tree.leaves(flags), axes, strict=True)
    ]
    share = _tree.safe_divide(
        jnp.float32(sum(counts)), jnp.float32(_norms.size(raw, axis_name))
    )
    before = _norms.global_norm(raw, axis_name).value
    after = _norms.global_norm(clipped, axis_name).value
    return share, jnp.where(before == 0, 1, _tree.safe_divide(after, before)), raw


def update_threshold(threshold: Any, sizes: Any, b2: Any, alpha: Any) -> Any:
    """The threshold after the sizes of an update; one that is not finite is no size."""

    def new_threshold(tau, size):
        # One bad gradient must not disable the clip (inf) or poison it (NaN) for good.
        is_size = jnp.isfinite(size)
        if isinstance(alpha, int | float) and alpha == 1:
            # As below, but for rounding. A choice between the two thresholds keeps XLA
            # from using vectors on a CPU: five times as long, where memory is fast.
            kept = jnp.where(is_size, b2, 1) * tau
            return kept + (1 - b2) * jnp.where(is_size, size, 0)
        return jnp.where(is_size, _tree.power_mean(tau, size, b2, alpha), tau)

    return jax.tree.map(new_threshold, threshold, sizes)


def _debias(threshold, b2, alpha, count):
    """The corrected threshold; 0 before the first update."""
    weight = _tree.debias_weight(b2, count) ** (1 / alpha)
    return jax.tree.map(lambda tau: _tree.safe_divide(tau, weight), threshold)


def _bounds(factor, past):
    return jax.tree.map(
        lambda r: jnp.where(r > 0, factor * r, _tree.no_limit(r.dtype)), past
    )


def _finite_minimum(size, bound):
    return jnp.where(jnp.isfinite(size), _tree.minimum(size, bound), size)


def _limited(grads, sizes, bounds, scope):
    if scope == "coordinate":
        return jax.tree.map(
            lambda g, b: jnp.where(_tree.is_limit(b), jnp.clip(g, -b, b), g),
            grads,
            bounds,
        )

    def factor(size, bound):
        is_known = _tree.is_limit(bound)
        return jnp.where(is_known, _factor(jnp.where(is_known, bound, 1), size, 0), 1)

    factors = jax.tree.map(factor, sizes, bounds)
    if scope == "global":  # one number for all leaves
        return jax.tree.map(lambda g: factors * g, grads)
    return jax.tree.map(jnp.multiply, factors, grads)


def _factor(threshold, size, eps):
    factor = _tree.minimum(_tree.safe_divide(threshold, size + eps), 1)
    # Without this an infinite norm would zero every finite entry, silently.
    # NaN of itself: a constant is one at which `jax_debug_nans` stops.
    return jnp.where(jnp.isfinite(size), factor, size - size)
