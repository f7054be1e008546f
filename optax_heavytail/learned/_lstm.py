"""The learned optimizer of 2016: one LSTM for all coordinates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base, _tree
from optax_heavytail._transform import transform
from optax_heavytail.learned import _shapes

UNITS = 20  # of each of the two layers
_GATES = 4 * UNITS
_INPUTS = {"log": 2, "none": 1}  # numbers that the network sees of a gradient


class LSTMWeights(NamedTuple):
    """Weights of `scale_by_lstm`: the same for every coordinate.

    Columns of 80 are four gates of 20 units in the order input, candidate, forget,
    output. 5,141 numbers for two inputs, 5,061 for one.
    """

    w_1: Any  #: (inputs + 20, 80), of the first layer's inputs and then of its state
    b_1: Any  #: (80,)
    w_2: Any  #: (40, 80), of the second layer, whose inputs are the first one's outputs
    b_2: Any  #: (80,)
    w_out: Any  #: (20,), of the update
    b_out: Any  #: ()


class ScaleByLSTMState(NamedTuple):
    """State of `scale_by_lstm`.

    Each field but the count is like the parameters, with a new last axis of 20 units,
    in float32 or wider or in ``state_dtype``: a ``PartitionSpec`` of a parameter fits
    them.
    """

    count: jax.typing.ArrayLike  #: (), int32, updates seen
    hidden_1: Any  #: h of the first layer
    cell_1: Any  #: c of the first layer
    hidden_2: Any  #: h of the second layer
    cell_2: Any  #: c of the second layer


def scale_by_lstm(
    weights: LSTMWeights,
    *,
    preprocess: str = "log",
    p: jax.typing.ArrayLike = 10.0,
    output_scale: jax.typing.ArrayLike = 0.1,
    state_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Computes each coordinate's step by an LSTM that was trained to optimize.

    **The state has 80 numbers for each parameter: 320 bytes, where Adam's has 8.** A
    step takes about 5,000 multiplications for each parameter. It is the optimizer of
    2016 for small problems of the kind that its weights were trained on; elsewhere it
    may do nothing or diverge.

    Each coordinate has a state of its own, and all of them share the weights. With
    :math:`x` the preprocessed gradient, for each of two layers of 20 units,

    .. math::
        (i, j, f, o) &= W [x; h] + b, \\
        c &\leftarrow \sigma(f + 1) \, c + \sigma(i) \tanh j, \qquad
        h \leftarrow \sigma(o) \tanh c,

    where :math:`x` of the second layer is :math:`h` of the first. The step of the paper
    is :math:`s (w \cdot h_2 + b)`, to be added to the parameters; the update is minus
    that, so that it points along the gradient like that of every ``scale_by_x``. Behind
    it `optax_heavytail.scale_by_learning_rate` with a rate of 1 gives the paper's step.

    With ``preprocess="log"`` the network sees of a gradient

    .. math::
        \left(\tfrac{\log |g|}{p}, \operatorname{sign} g\right)
        \text{ if } |g| \geq e^{-p}, \qquad (-1, e^p g) \text{ otherwise},

    so that 1e38 is no more than 8.7 to it: this protects against heavy tails as well.

    Args:
      weights: of `load`, of `init_lstm`, or traced, to be trained.
      preprocess: "log", or "none" for the gradient itself.
      p: :math:`p` in (0, inf), as the weights were trained. Not used by "none".
      output_scale: :math:`s` in (0, inf), in the parameters' units, likewise.
      state_dtype: dtype of the state. ``None``: the parameter's own, but at least
        float32. bfloat16 halves the state and is rounded stochastically: see
        `~optax_heavytail.ema`.

    Returns:
      A transform with a `ScaleByLSTMState`, for bfloat16 inside a
      `~optax_heavytail.StochasticRoundingState`. Updates keep the
      gradients' structure, shapes and dtypes; none is larger than
      :math:`s (\sum_k |w_k| + |b|)`. A zero gradient gives
      what the network says of it, which is not 0; a huge one is bounded likewise. An
      inf or NaN gradient makes its own coordinate's update NaN, no other's, and leaves
      the state as it was.

    Raises:
      ValueError: a concrete number is outside its range, ``preprocess`` is unknown, or
        the weights have other shapes, such as those for another ``preprocess``.
      TypeError: a parameter or gradient is not real floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.init_lstm(jax.random.key(0))
      >>> tx = oht.learned.scale_by_lstm(weights, output_scale=0.5)
      >>> grads = jnp.array([1e-30, -3.0, 1e30])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> limit = 0.5 * (jnp.sum(jnp.abs(weights.w_out)) + jnp.abs(weights.b_out))
      >>> bool(jnp.all(jnp.abs(updates) <= limit)), state.cell_2.shape
      (True, (3, 20))

    References:
      After Andrychowicz et al., `Learning to learn by gradient descent by gradient
      descent <https://arxiv.org/abs/1606.04474>`_, 2016, section 2.1 and appendix A.
    """
    _base.check_choice("preprocess", preprocess, tuple(_INPUTS))
    _base.check_range("p", p, 0.0, float("inf"), low_open=True)
    _base.check_range("output_scale", output_scale, 0.0, float("inf"), low_open=True)
    _base.check_dtype("state_dtype", state_dtype)
    _shapes.check(weights, LSTMWeights, shapes(preprocess), f"for {preprocess!r}")

    def init(params):
        fields = (
            jax.tree.map(_per_unit, _tree.zeros_like(params, state_dtype))
            for _ in range(4)
        )
        return ScaleByLSTMState(jnp.zeros([], jnp.int32), *fields)

    def update(grads, state):
        leaves, treedef = jax.tree.flatten(grads)
        fields = [jax.tree.leaves(field) for field in state[1:]]
        steps, new = [], []
        for g, *own in zip(leaves, *fields, strict=True):
            step, own = _one_step(weights, preprocess, p, g, own)
            steps.append(-(output_scale * step))
            new.append(own)
        fields = (treedef.unflatten([own[k] for own in new]) for k in range(4))
        count = optax.safe_increment(state.count)
        return treedef.unflatten(steps), ScaleByLSTMState(count, *fields)

    return transform(init, update, dtypes=dict.fromkeys(_FIELDS, state_dtype))


_FIELDS = ScaleByLSTMState._fields[1:]


def init_lstm(key: jax.Array, *, preprocess: str = "log") -> LSTMWeights:
    """Weights of `scale_by_lstm` to start a training from.

    Args:
      key: of the random numbers.
      preprocess: as it is to be for `scale_by_lstm`.

    Returns:
      Normal numbers with a variance of 1 over the number of a layer's inputs, biases of
      0, and an output a hundred times smaller, so that the first steps are near 0.

    Raises:
      ValueError: ``preprocess`` is unknown.

    Example:
      >>> import jax
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.init_lstm(jax.random.key(0), preprocess="none")
      >>> sum(w.size for w in weights)
      5061
    """
    _base.check_choice("preprocess", preprocess, tuple(_INPUTS))
    made = _shapes.drawn(key, LSTMWeights, shapes(preprocess))
    return made._replace(w_out=0.01 * made.w_out)


def shapes(preprocess: str) -> tuple[tuple[int, ...], ...]:
    """Those of the weights; the first one of a matrix is of its inputs."""
    first = _INPUTS[preprocess] + UNITS, _GATES
    return first, (_GATES,), (2 * UNITS, _GATES), (_GATES,), (UNITS,), ()


def _per_unit(zeros):
    """Zeros with a last axis of units, which lie where the given ones do."""
    return jnp.stack([zeros] * UNITS, axis=-1)


def _one_step(weights, preprocess, p, g, own):
    """The paper's step of a leaf before its scale, and the leaf's new state."""
    hidden_1, cell_1, hidden_2, cell_2 = own
    w = LSTMWeights(*(jnp.asarray(x, g.dtype) for x in weights))
    good = jnp.isfinite(g)
    x = _inputs(jnp.where(good, g, 0), preprocess, p)
    new_1 = _cell(x, hidden_1, cell_1, w.w_1, w.b_1)
    new_2 = _cell(new_1[0], hidden_2, cell_2, w.w_2, w.b_2)
    step = _matmul(new_2[0], w.w_out) + w.b_out
    # One bad gradient must not poison the state for good.
    new = [
        jnp.where(good[..., None], x, old)
        for x, old in zip((*new_1, *new_2), own, strict=True)
    ]
    return _tree.nan_unless(good, step), new


def _inputs(g, preprocess, p):
    if preprocess == "none":
        return g[..., None]
    size = jnp.abs(g)
    edge = jnp.exp(-jnp.asarray(p, g.dtype))
    is_large = size >= edge
    # The logarithm has no finite slope at 0, and its branch is taken in neither way.
    log = jnp.log(jnp.where(is_large, size, 1)) / p
    # Nor does the other branch's product overflow where it is not used.
    small = jnp.where(is_large, 0, g) / edge
    return jnp.stack(
        [jnp.where(is_large, log, -1), jnp.where(is_large, jnp.sign(g), small)],
        axis=-1,
    )


def _cell(x, hidden, cell, w, b):
    number = x.shape[-1]
    gates = _matmul(x, w[:number]) + _matmul(hidden, w[number:])
    gates += jnp.expand_dims(b, tuple(range(gates.ndim - 1)))
    i, j, f, o = (gates[..., k * UNITS : (k + 1) * UNITS] for k in range(4))
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _matmul(x, w):
    # The default precision is bfloat16 on a TPU.
    return jnp.matmul(x, w, precision="highest")
