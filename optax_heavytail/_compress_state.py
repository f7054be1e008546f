"""States in one byte for each number."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail import _base
from optax_heavytail._stochastic_rounding import KIND, random_bits, seed_of
from optax_heavytail._transform import Inner, as_transform, wrapper

# Smaller leaves are no memory to speak of, and biases need their digits most.
_FEWEST = 4096
# A row shares a scale: at most 2 bytes for so many entries.
_SHORTEST_ROW = 64

# A code is a float32 without its last 20 bits, counted down from its row's largest.
_DROPPED = 20
_INF = 0x7F8  # the first 11 bits behind the sign; below it are the finite numbers
_SIGNED = 1 << 15  # in a scale: whether the row's codes have a bit for the sign
_MOST = (253, 125)  # the code of the largest, without and with a sign; then inf and NaN


class CompressedArray(NamedTuple):
    """An array of float32 in one byte for each entry."""

    codes: jax.Array  #: uint8, the array's shape
    scales: jax.Array  #: uint16, one of each row, with axes of length 1


class CompressStateState(NamedTuple):
    """State of `compress_state`."""

    key: jax.Array  #: (2,), uint32, the data of a random key; it changes at each update
    inner_state: (
        Any  #: with a `CompressedArray` in the place of each large float32 leaf
    )


def compress_state(inner: Inner) -> optax.GradientTransformationExtraArgs:
    r"""Keeps the state of ``inner`` in one byte for each number.

    Each float32 leaf of the state with 4,096 entries or more is stored as a
    `CompressedArray`, which takes 1.00 to 1.03 bytes for an entry: a state of AdamW 2.0
    bytes for a parameter in place of 8. All other leaves stay what they are.

    A code stands for the first four binary digits of a number,

    .. math:: \hat x = \pm \left(1 + \tfrac{k}{8}\right) 2^{e}, \qquad k = 0, \dots, 7,

    and the exponents reach down from that of the largest entry of the row: 31 powers of
    two where no entry of a row is negative (a factor of 46,000 between gradients whose
    squares are averaged), 15 where one is. A row is the last axis, or as many of the
    last ones as have 64 entries. **Zero stays zero, and nothing else becomes zero in a
    row without negative numbers**: what is smaller than the smallest code gets that
    code. A second moment rounded to 0 would make a step as long as :math:`1/\epsilon`.
    In rows with a sign such numbers become 0.

    Rounding is stochastic: :math:`\hat x` is the lower or the upper neighbour, and
    :math:`x` on average. To the nearest, a second moment of decay 0.999 would never
    change: its increments are a hundredth of the distance between neighbours.
    In a steady state it fluctuates by a fifth of its size, a step by a tenth.

    Args:
      inner: an optimizer or transform whose state are averages, such as
        ``optax.adamw(1e-3)``. **Not** one that keeps iterates or copies of the
        parameters (averaged weights, schedule-free points, snapshots, `neumann`):
        three digits are too few for them. States in bfloat16 stay so: ask ``inner`` for
        float32, ``mu_dtype=jnp.float32``, where the parameters are narrower.

    Returns:
      A transform with a `CompressStateState`; its updates are those of ``inner`` with
      the state that was read back. Structure, shapes, dtypes and shardings never
      change. The noise follows from the key in the state: a run that is resumed equals
      one that was not stopped, bit for bit. Zero gradients do what they do at
      ``inner``. Huge ones are stored up to the largest float32. An inf or NaN in a
      state comes back as such, and changes no other entry. `get_momentum` and other
      readers want ``decompress_state(state)``.

    Raises:
      TypeError: ``inner`` is no transform, or a parameter or gradient is not real
        floating-point.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> params = {"w": jnp.ones((64, 256))}
      >>> plain, small = optax.adamw(0.1), oht.compress_state(optax.adamw(0.1))
      >>> def size(tx):
      ...     return sum(x.nbytes for x in jax.tree.leaves(tx.init(params)))
      >>> size(plain), size(small)
      (131076, 33036)
      >>> updates, state = small.update(params, small.init(params), params)
      >>> round(float(updates["w"][0, 0]), 3)
      -0.1
      >>> oht.get_momentum(oht.decompress_state(state))["w"].dtype
      dtype('float32')

    References:
      Dettmers et al., `8-bit optimizers via block-wise quantization
      <https://arxiv.org/abs/2110.02861>`_, 2021, have blocks, codes by a table, and
      round to the nearest. Floating-point codes need no blocks: their precision is
      relative.
    """
    _base.check_transform("inner", inner)
    inner_tx = as_transform(inner)

    def init(params):
        key = jax.random.key(seed_of(["compressed"], params), impl=KIND)
        return CompressStateState(
            jax.random.key_data(key), _compress(inner_tx.init(params), key)
        )

    def update(updates, state, params, **extra_args):
        stored = decompress_state(state.inner_state)
        updates, new = inner_tx.update(updates, stored, params, **extra_args)
        key, now = jax.random.split(jax.random.wrap_key_data(state.key, impl=KIND))
        return updates, CompressStateState(
            jax.random.key_data(key), _compress(new, now)
        )

    return wrapper(init, update)


def decompress_state(state: Any) -> Any:
    """The same state, with float32 for every `CompressedArray` in it.

    Readers such as `get_momentum` and ``optax.tree.get`` find plain arrays in it.

    Args:
      state: any state, also one with `compress_state` deep within.

    Returns:
      It with arrays. Everything else is what it was; zero, inf and NaN are themselves.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_heavytail as oht
      >>> tx = oht.compress_state(optax.trace(0.9))
      >>> state = tx.init(jnp.zeros(4096))
      >>> oht.decompress_state(state).inner_state.trace.shape
      (4096,)
    """
    return jax.tree.map(
        lambda x: decode(x) if isinstance(x, CompressedArray) else x,
        state,
        is_leaf=lambda x: isinstance(x, CompressedArray),
    )


def _compress(tree: Any, key: jax.Array) -> Any:
    leaves, treedef = jax.tree.flatten(tree)
    seeds = jax.random.bits(key, (max(len(leaves), 1),), jnp.uint32)
    compressed = [
        encode(leaf, seed) if _is_large(leaf) else leaf
        for leaf, seed in zip(leaves, seeds, strict=False)
    ]
    return treedef.unflatten(compressed)


def _is_large(leaf: Any) -> bool:
    return jnp.result_type(leaf) == jnp.float32 and jnp.size(leaf) >= _FEWEST


def _row_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The last axes, as many as have the entries of a row."""
    first = len(shape) - 1
    while first > 0 and math.prod(shape[first:]) < _SHORTEST_ROW:
        first -= 1
    return tuple(range(first, len(shape)))


def encode(x: jax.Array, seed: jax.Array) -> CompressedArray:
    """The codes of float32 numbers, each rounded up as often as it is near."""
    lowest, highest = _ends(x, _row_axes(x.shape))
    signed = lowest < 0
    largest = _bits(jnp.maximum(highest, -lowest))
    # Rounded up, and not to inf.
    top = jnp.minimum((largest + ((1 << _DROPPED) - 1)) >> _DROPPED, _INF - 1)
    most = jnp.where(signed, _MOST[1], _MOST[0])
    bits, inf = _bits(x), _INF << _DROPPED
    size = bits & 0x7FFFFFFF
    noise = random_bits(x.shape, seed) << (_DROPPED - 16)
    number = jnp.minimum((size + noise) >> _DROPPED, top)
    code = number.astype(jnp.int32) - top.astype(jnp.int32) + most
    code = jnp.maximum(code, jnp.where(signed, 0, 1))
    code = jnp.where(size == 0, 0, code)
    code = jnp.where(size >= inf, most + 1 + (size > inf), code)
    sign = jnp.where(signed & (x < 0), 128, 0)
    scales = top | jnp.where(signed, jnp.uint32(_SIGNED), jnp.uint32(0))
    return CompressedArray((code + sign).astype(jnp.uint8), scales.astype(jnp.uint16))


def _ends(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The lowest and highest number of each row, or 0, of those that are finite.

    A -inf counts as the smallest number below 0: for its sign. To look for such numbers
    takes longer than all the rest, and hardly ever is there one.
    """

    def ends(x):
        # One pass for both; jnp.min and jnp.max are a kernel each on a CPU. The barrier
        # keeps XLA from evaluating it for the zeros of `init`: that takes a second for
        # 256 x 1024 of them.
        x = jax.lax.optimization_barrier(x)
        both = jax.lax.reduce((x, x), (jnp.inf, -jnp.inf), _lower_and_higher, axes)
        return tuple(jnp.expand_dims(end, axes) for end in both)

    def of_finite():
        others = jnp.where(x < 0, -jnp.finfo(jnp.float32).tiny, 0)
        return ends(jnp.where(jnp.isfinite(x), x, others))

    plain = ends(x)
    are_finite = jnp.all(jnp.isfinite(plain[0]) & jnp.isfinite(plain[1]))
    low, high = jax.lax.cond(are_finite, lambda: plain, of_finite)
    return jnp.minimum(low, 0), jnp.maximum(high, 0)


def _lower_and_higher(a: Any, b: Any) -> tuple[jax.Array, jax.Array]:
    return jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1])


def _bits(x: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def decode(x: CompressedArray) -> jax.Array:
    """The float32 numbers of the codes."""
    codes, scales = x.codes.astype(jnp.int32), x.scales.astype(jnp.int32)
    signed = scales >= _SIGNED
    most = jnp.where(signed, _MOST[1], _MOST[0])
    code = codes & jnp.where(signed, 127, 255)
    number = jnp.maximum(code + (scales & (_SIGNED - 1)) - most, 0)
    bits = jnp.where(code == 0, 0, number << _DROPPED)
    inf = _INF << _DROPPED
    bits = jnp.where(code > most, jnp.where(code > most + 1, inf + 1, inf), bits)
    is_negative = signed & (codes >= 128)
    bits = bits.astype(jnp.uint32) | jnp.where(
        is_negative, jnp.uint32(1 << 31), jnp.uint32(0)
    )
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
