"""A learned correction of normalised ACClip by a network of 170 weights."""

import math
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail import _base, _tree, _units
from optax_heavytail._transform import transform
from optax_heavytail.learned import _shapes

DECAYS = (0.9, 0.99, 0.999)
FEATURES, HIDDEN, OUTPUTS = 9, 8, 2
# Updates before a gradient is limited, and then to so many times the usual size.
_WARM_UP, _LIMIT = 10, 8.0
_LARGEST_LOG = 4.0  # of a ratio of two averages, to the base 2
_FLOOR = 1e-12  # under the mean of squares of numbers of size 1

SHAPES = (
    (FEATURES, HIDDEN),
    (HIDDEN,),
    (HIDDEN, HIDDEN),
    (HIDDEN,),
    (HIDDEN, OUTPUTS),
    (OUTPUTS,),
)


class MLPWeights(NamedTuple):
    """Weights of `scale_by_mlp`: 170 numbers, the same for every coordinate."""

    w_0: Any  #: (9, 8), of the features
    b_0: Any  #: (8,)
    w_1: Any  #: (8, 8)
    b_1: Any  #: (8,)
    w_2: Any  #: (8, 2), of the two outputs
    b_2: Any  #: (2,)


class ScaleByMLPState(NamedTuple):
    """State of `scale_by_mlp`.

    Each field but the count is like the parameters, in float32 or wider or in
    ``state_dtype``, and not corrected for its start at 0.
    """

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    mean_1: Any  #: average of the gradient with decay 0.9
    mean_2: Any  #: with decay 0.99
    mean_3: Any  #: with decay 0.999
    size_1: Any  #: average of the gradient's size with decay 0.9
    size_2: Any  #: with decay 0.99
    size_3: Any  #: with decay 0.999


def scale_by_mlp(
    weights: MLPWeights,
    *,
    rms: jax.typing.ArrayLike = 0.3,
    axis_name: Any = None,
    layer_axis: Any = None,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Corrects each coordinate's normalised momentum by a small learned network.

    **The state has 6 numbers for each parameter: 24 bytes, where Adam's has 8; 12 with
    a bfloat16 state.**

    Elementwise, with :math:`\beta = (0.9, 0.99, 0.999)`, :math:`m_j = \tau_j = 0` at
    the start and :math:`j = 1, 2, 3`,

    .. math::
        m_j &\leftarrow \beta_j m_j + (1 - \beta_j) g, \qquad
        \tau_j \leftarrow \beta_j \tau_j + (1 - \beta_j) |g|, \qquad
        r_j = m_j / \tau_j, \\
        s &= \operatorname{sign}(g) \log(1 + \min(|g| / \hat\tau_2, 8)), \qquad
        a = \operatorname{sign}(g) \operatorname{sign}(m_1), \\
        l_k &= \min(\max(\log_2(\hat\tau_k / \hat\tau_{k+1}), -4), 4), \qquad k = 1, 2,
        \\
        o &= \operatorname{MLP}(r_1, r_2, r_3, s, l_1, l_2, a, |r_1|, |r_2|), \\
        u &= r_1 \exp(2 \tanh(o_1 / 2)) + \tanh(o_2) / 2,

    where the network has two hidden layers of 8 rectified units, and
    :math:`\hat\tau_j = \tau_j / (1 - \beta_j^t)`. From update 11 on :math:`g` is first
    limited to 8 times the last :math:`\hat\tau_2`, where that is not 0. The update is
    :math:`u` times :math:`c` over the root mean square of :math:`u` in the leaf.

    With an output layer of zeros :math:`u = r_1`: normalised ACClip with
    :math:`\beta_1 = \beta_2 = 0.9`, whose clip never binds. Every feature is bounded
    and the same for a loss times any positive number, and a spike in one coordinate
    changes the features of no other.

    Args:
      weights: of `load`, of `init_mlp`, or traced, to be trained.
      rms: :math:`c` in (0, inf): root mean square of the updates of a leaf, without
        unit. 0.3 gives them the size of Adam's, so that learning rates of AdamW apply.
      axis_name: see `~optax_heavytail.clip_by_norm`, for the mean over a leaf.
      layer_axis: the axis that stacks layers, each of which has its own mean: an int,
        ``None``, or a tree prefix of these.
      state_dtype: dtype of the state. ``None``: the parameter's own, but at least
        float32. bfloat16 is rounded stochastically: see
        `~optax_heavytail.ema`.

    Returns:
      A transform with a `ScaleByMLPState`, for bfloat16 inside a
      `~optax_heavytail.StochasticRoundingState`. Updates point along the
      gradient and keep its structure, shapes and dtypes. A coordinate whose
      gradients were all zero does not
      move; huge and tiny gradients neither overflow nor underflow. An inf or NaN
      gradient makes its own coordinate's update NaN, no other's, and does not enter the
      averages.

    Raises:
      ValueError: ``rms`` is a concrete number outside its range, or weights have other
        shapes.
      TypeError: a parameter or gradient is not real floating-point, or ``weights`` are
        none of this network.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.init_mlp(jax.random.key(0))
      >>> tx = oht.learned.scale_by_mlp(weights)
      >>> grads = jnp.array([3.0, -1e-8, 0.0, 2e6])
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> scaled, _ = tx.update(grads * 2.0**80, tx.init(grads))
      >>> bool(jnp.all(updates == scaled)), float(updates[2])
      (True, 0.0)
      >>> round(float(jnp.sqrt(jnp.mean(updates**2))), 4)
      0.3

    References:
      The features are those of learned optimizers such as Metz et al., `Practical
      tradeoffs between memory, compute, and performance in learned optimizers
      <https://arxiv.org/abs/2203.11860>`_, 2022, with sizes in the place of squares;
      the division by the root mean square is after Celo2,
      `<https://arxiv.org/abs/2602.19142>`_, 2026.
    """
    _base.check_range("rms", rms, 0.0, float("inf"), low_open=True)
    _base.check_dtype("state_dtype", state_dtype)
    _shapes.check(weights, MLPWeights, SHAPES, "for this network")
    units = _units.Units("leaf", layer_axis, axis_name)
    weights = MLPWeights(*map(_concrete, weights))

    def init(params):
        fields = (_tree.zeros_like(params, state_dtype) for _ in _FIELDS)
        return ScaleByMLPState(jnp.zeros([], jnp.int32), *fields)

    def update(grads, state):
        count = optax.safe_increment(state.count)
        leaves, treedef = jax.tree.flatten(grads)
        fields = [jax.tree.leaves(field) for field in state[1:]]
        directions, new = [], []
        for g, *own in zip(leaves, *fields, strict=True):
            direction, own = _one_step(weights, state.count, count, g, own)
            directions.append(direction)
            new.append(own)
        fields = [treedef.unflatten([own[k] for own in new]) for k in range(6)]
        direction = treedef.unflatten(directions)
        squares = units.sums(jax.tree.map(jnp.square, direction))
        mean = _tree.safe_divide(squares, units.counts(direction))
        factors = jnp.asarray(rms / jnp.sqrt(mean + _FLOOR))
        scaled = units.map(lambda u, factor: u * factor, direction, factors)
        # What is not finite is seen, and has no part in the mean of the others.
        scaled = jax.tree.map(
            lambda u, g: _tree.nan_unless(jnp.isfinite(g), u), scaled, grads
        )
        return scaled, ScaleByMLPState(count, *fields)

    return transform(init, update, dtypes=dict.fromkeys(_FIELDS, state_dtype))


_FIELDS = ScaleByMLPState._fields[1:]


def init_mlp(key: jax.Array) -> MLPWeights:
    """Weights of `scale_by_mlp` to start a training from.

    Args:
      key: of the random numbers.

    Returns:
      Normal numbers with a variance of 1 over the number of a layer's inputs, and zeros
      for the last layer: `scale_by_mlp` starts as normalised ACClip.

    Example:
      >>> import jax
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.init_mlp(jax.random.key(0))
      >>> sum(w.size for w in weights), float(abs(weights.w_2).max())
      (170, 0.0)
    """
    made = _shapes.drawn(key, MLPWeights, SHAPES)
    return made._replace(w_2=jnp.zeros_like(made.w_2))


def _concrete(array: Any) -> Any:
    """Weights that are known as numbers of the program, each of which is a literal."""
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def _one_step(weights, old_count, count, g, own):
    """The direction of a leaf, 0 where its gradient is not finite, and its state."""
    means, sizes = own[:3], own[3:]
    good = jnp.isfinite(g)
    g = _limited(jnp.where(good, g, 0), sizes[1], old_count)
    new_means = [_average(m, g, b) for m, b in zip(means, DECAYS, strict=True)]
    new_sizes = [_average(t, jnp.abs(g), b) for t, b in zip(sizes, DECAYS, strict=True)]
    x = _features(g, new_means, new_sizes, count)
    first, second = _network(weights, x)
    direction = x[0] * jnp.exp(2 * jnp.tanh(first / 2)) + jnp.tanh(second) / 2
    # Without this the network would move what has no gradient: a row of an embedding
    # that no batch has had.
    direction = jnp.where(good & (new_sizes[0] > 0), direction, 0)
    pairs = zip((*new_means, *new_sizes), own, strict=True)
    return direction, [jnp.where(good, new, old) for new, old in pairs]


def _average(old, new, decay):
    return decay * old + (1 - decay) * new


def _limited(g, size, count):
    """The gradient, at most so many times what is usual; its product cannot overflow.

    Bounded ratios still remember: after one spike of 1e4 the momentum points the wrong
    way for 66 updates.
    """
    usual = _tree.safe_divide(size, _tree.debias_weight(DECAYS[1], count))
    is_over = (count >= _WARM_UP) & (usual > 0) & (jnp.abs(g) / _LIMIT > usual)
    return jnp.where(is_over, jnp.sign(g) * (jnp.where(is_over, usual, 0) * _LIMIT), g)


def _features(g, means, sizes, count):
    hats = [
        _tree.safe_divide(size, _tree.debias_weight(decay, count))
        for size, decay in zip(sizes, DECAYS, strict=True)
    ]
    r = [_tree.safe_divide(m, size) for m, size in zip(means, sizes, strict=True)]
    ratio = _tree.minimum(_tree.safe_divide(jnp.abs(g), hats[1]), _LIMIT)
    s = jnp.sign(g) * jnp.log1p(ratio)
    logs = [_bounded_log2(_tree.safe_divide(x, y)) for x, y in (hats[:2], hats[1:])]
    a = jnp.sign(g) * jnp.sign(means[0])
    return [*r, s, *logs, a, jnp.abs(r[0]), jnp.abs(r[1])]


def _bounded_log2(ratio):
    """The logarithm of a ratio within its bounds, beyond which it has no slope."""
    low, high = 2.0**-_LARGEST_LOG, 2.0**_LARGEST_LOG
    return jnp.log(jnp.clip(ratio, low, high)) * (1 / math.log(2))


def _network(weights, x):
    """The two outputs, as sums of products: one pass over memory, as no matmul is."""
    w_0, b_0, w_1, b_1, w_2, b_2 = weights
    for w, b in ((w_0, b_0), (w_1, b_1)):
        x = [jnp.where(y > 0, y, 0) for y in _layer(x, w, b)]
    return _layer(x, w_2, b_2)


def _layer(x, w, b):
    return [
        sum((w[i, k] * value for i, value in enumerate(x)), b[k])
        for k in range(w.shape[1])
    ]
