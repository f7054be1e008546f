"""The Neumann optimizer with its inner loop: one Newton-like direction per update."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._learning_rate import scale_by_learning_rate
from optax_heavytail._transform import wrapper

_NO_GRAD_FN = (
    "This transformation computes gradients of its own: call `update(updates, state, "
    "params, grad_fn=grad_fn)`."
)


class NeumannInnerLoopState(NamedTuple):
    """State of `neumann_inner_loop`."""

    count: jax.typing.ArrayLike  #: (), int32, updates seen


def neumann_inner_loop(
    learning_rate: _base.ScalarOrSchedule,
    num_inner_steps: jax.typing.ArrayLike,
    *,
    convexify: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None = None,
    fresh_batches: bool = False,
    use_hvp: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Turns the gradient into a truncated Neumann series of the Newton direction.

    With :math:`m_0 = -g(w)` and :math:`k = 1, \dots, K`,

    .. math:: m_k = m_{k-1} - g(w + \eta m_{k-1}), \qquad u = -m_K .

    Each step costs one gradient and no Hessian. On a quadratic with Hessian :math:`H`
    and :math:`0 < \eta \lambda(H) < 2`, :math:`\eta u \to H^{-1} g(w)` with the error
    :math:`\lVert I - \eta H \rVert^{K+1}`.

    For an indefinite :math:`H` with eigenvalues in
    :math:`(\lambda_{\min}, \lambda_{\max})`, ``convexify`` takes
    :math:`\mu = \lambda_{\max} / (|\lambda_{\min}| + \lambda_{\max})`,
    :math:`\eta = 1 / \lambda_{\max}` in place of the learning rate,
    :math:`m_0 = -\eta g(w)` and

    .. math:: m_k = \mu m_{k-1} - \eta g(w + \mu m_{k-1}), \qquad u = -m_K / \eta .

    On a quadratic :math:`\eta u` then tends to a damped Newton direction,
    :math:`\frac{1}{\mu} (H + |\lambda_{\min}| I)^{-1} g(w)`.

    Args:
      learning_rate: :math:`\eta` in (0, inf), the inner one, or a schedule of the count
        from 0. Not used with ``convexify``.
      num_inner_steps: :math:`K` in [0, inf), an integer, possibly traced.
      convexify: :math:`(\lambda_{\min}, \lambda_{\max})`, curvature bounds, the
        second above 0; ``None`` for the plain series.
      fresh_batches: whether to call ``grad_fn(params, k)``, k = 1..K, so that it can
        take a new mini-batch in each step, and not ``grad_fn(params)``.
      use_hvp: whether to replace the gradient at the displaced point by
        :math:`g(w) + \eta H m_{k-1}` with the exact Hessian-vector product of
        ``grad_fn``, for comparison.

    Returns:
      A transform whose ``update`` takes the gradient as updates, needs the
      parameters, and the keyword ``grad_fn``, a traceable function from parameters to
      gradients; inside ``optax.masked`` it gets the parameters that are left. Its state
      is a `NeumannInnerLoopState`. Updates keep the gradients' structure, shapes and
      dtypes. Zero gradients everywhere give zero updates; inf and NaN pass through.

    Raises:
      ValueError: a concrete number is outside its range, or ``update`` was called
        without parameters or ``grad_fn``.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> hessian = jnp.array([1.0, 0.5])
      >>> tx = oht.neumann_inner_loop(learning_rate=1.0, num_inner_steps=20)
      >>> params = jnp.array([2.0, 6.0])
      >>> updates, _ = tx.update(
      ...     hessian * params, tx.init(params), params, grad_fn=lambda w: hessian * w
      ... )
      >>> [round(u, 3) for u in updates.tolist()]  # the Newton step leads to 0
      [2.0, 6.0]

    References:
      Krishnan, Xiao and Saurous, `Neumann optimizer <https://arxiv.org/abs/1712.03298>`_,
      2018, algorithm 1 and section 3.2. Its :math:`\eta, K` are ``learning_rate`` and
      ``num_inner_steps``.
    """
    _base.check_range("learning_rate", learning_rate, 0.0, float("inf"), low_open=True)
    _base.check_integer("num_inner_steps", num_inner_steps, 0)
    _base.check_flag("fresh_batches", fresh_batches)
    _base.check_flag("use_hvp", use_hvp)
    _check_curvatures(convexify)

    def init(params):
        del params
        return NeumannInnerLoopState(jnp.zeros([], jnp.int32))

    def update(updates, state, params, *, grad_fn=None, **extra_args):
        del extra_args
        if grad_fn is None:
            raise ValueError(_NO_GRAD_FN)
        wide = _tree.at_least_float32(params)
        # The loop runs on m of the plain series and on m / eta of the convexified one.
        if convexify is None:
            eta, mu = _base.at_count(learning_rate, state.count), 1.0
        else:
            low, high = convexify
            eta, mu = 1 / high, high / (jnp.abs(low) + high)

        def gradient_in_step(k):
            def gradient(point):
                point = _tree.cast_like(point, params)
                return _tree.at_least_float32(
                    grad_fn(point, k) if fresh_batches else grad_fn(point)
                )

            return gradient

        def body(k, total):
            offset = jax.tree.map(lambda m: (mu * eta * m).astype(m.dtype), total)
            gradient = _displaced(gradient_in_step(k), wide, offset, use_hvp)
            new = jax.tree.map(lambda m, g: mu * m - g, total, gradient)
            return _tree.cast_like(new, total)

        start = jax.tree.map(
            lambda g, w: -g.astype(w.dtype), _tree.at_least_float32(updates), wide
        )
        last = num_inner_steps
        if not isinstance(last, int):  # a narrow one could overflow at the end
            last = jnp.asarray(last, jnp.int32)
        total = jax.lax.fori_loop(1, last + 1, body, start)
        direction = jax.tree.map(jnp.negative, total)
        new_state = NeumannInnerLoopState(optax.safe_increment(state.count))
        return _tree.cast_like(direction, updates), new_state

    return wrapper(init, update, needs_params=True)


def neumann_two_loop(
    learning_rate: _base.ScalarOrSchedule,
    num_inner_steps: jax.typing.ArrayLike,
    *,
    outer_learning_rate: _base.ScalarOrSchedule | None = None,
    convexify: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike] | None = None,
    fresh_batches: bool = False,
    use_hvp: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""The Neumann optimizer in its two-loop form.

    .. math:: w \leftarrow w - \eta_{\text{out}} u

    with :math:`u` of `neumann_inner_loop`.

    Args:
      learning_rate: the inner :math:`\eta` in (0, inf), or a schedule of the count
        from 0.
      num_inner_steps: :math:`K` in [0, inf), an integer, possibly traced.
      outer_learning_rate: :math:`\eta_{\text{out}}` in [0, inf), or a schedule.
        ``None``: the inner one.
      convexify: see `neumann_inner_loop`.
      fresh_batches: see `neumann_inner_loop`.
      use_hvp: see `neumann_inner_loop`.

    Returns:
      ``chain(neumann_inner_loop, scale_by_learning_rate)``; its ``update`` needs the
      parameters and the keyword ``grad_fn``.

    Raises:
      ValueError: a concrete number is outside its range, or ``update`` was called
        without parameters or ``grad_fn``.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> grad_fn = jax.grad(lambda w: 0.5 * w[0] ** 2 + 0.25 * w[1] ** 2)
      >>> tx = oht.neumann_two_loop(learning_rate=1.0, num_inner_steps=20)
      >>> params = jnp.array([2.0, 6.0])
      >>> updates, _ = tx.update(
      ...     grad_fn(params), tx.init(params), params, grad_fn=grad_fn
      ... )
      >>> [round(w, 3) for w in optax.apply_updates(params, updates).tolist()]
      [0.0, 0.0]

    References:
      Krishnan, Xiao and Saurous, `Neumann optimizer <https://arxiv.org/abs/1712.03298>`_,
      2018, algorithm 1.
    """
    if outer_learning_rate is not None:
        _base.check_range("outer_learning_rate", outer_learning_rate, 0.0, float("inf"))
    outer = learning_rate if outer_learning_rate is None else outer_learning_rate
    return optax.chain(
        neumann_inner_loop(
            learning_rate,
            num_inner_steps,
            convexify=convexify,
            fresh_batches=fresh_batches,
            use_hvp=use_hvp,
        ),
        scale_by_learning_rate(outer),
    )


def _check_curvatures(convexify):
    if convexify is None:
        return
    _base.check_pair("convexify", convexify)
    low, high = convexify
    _base.check_range("convexify[0]", low, -float("inf"), float("inf"))
    _base.check_range("convexify[1]", high, 0.0, float("inf"), low_open=True)
    _base.check_order("convexify[0]", low, "convexify[1]", high)


def _displaced(gradient, point, offset, use_hvp):
    """The gradient at a displaced point, or its linear model there."""
    if use_hvp:
        return optax.tree.add(*jax.jvp(gradient, (point,), (offset,)))
    return gradient(optax.tree.add(point, offset))
