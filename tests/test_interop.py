"""Flax Linen, Flax NNX and Equinox: a few steps, and what decay_mask makes of each."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optax_heavytail as oht

FEATURES, WIDTH, STEPS = 3, 8, 20

OPTIMIZERS = {
    "acclip": oht.acclip(0.03, weight_decay=0.01, mask=oht.decay_mask, normalize=True),
    "gclip": oht.gclip(0.1, threshold=1.0, weight_decay=0.01, mask=oht.decay_mask),
    "cclip": oht.cclip(0.1, threshold=1.0, weight_decay=0.01, mask=oht.decay_mask),
}
each_optimizer = pytest.mark.parametrize("tx", OPTIMIZERS.values(), ids=OPTIMIZERS)


def _regression():
    """Student t noise with 1.5 degrees of freedom on a smooth target."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, FEATURES))
    y = np.sin(x[:, :1]) + 0.1 * rng.standard_t(1.5, size=(64, 1))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


X, Y = _regression()


def _error(prediction):
    return jnp.mean(jnp.abs(prediction - Y))


def _assert_falls(losses):
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.9 * losses[0]


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.tanh(nn.Dense(WIDTH)(x)))
        return nn.Dense(1)(x)


@each_optimizer
def test_linen(tx):
    model = LinenModel()
    params = model.init(jax.random.key(0), X)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state):
        def loss(params):
            return _error(state.apply_fn({"params": params}, X))

        value, grads = jax.value_and_grad(loss)(state.params)
        return state.apply_gradients(grads=grads), value

    losses = []
    for _ in range(STEPS):
        state, value = step(state)
        losses.append(value)
    _assert_falls(losses)


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(FEATURES, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(nnx.tanh(self.first(x))))


@each_optimizer
def test_nnx(tx):
    model = NnxModel(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: _error(m(X)))(model)
        optimizer.update(model, grads)
        return value

    _assert_falls([step(model, optimizer) for _ in range(STEPS)])
    assert oht.get_momentum(optimizer.opt_state) is not None


class EquinoxModel(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.first = eqx.nn.Linear(FEATURES, WIDTH, key=first)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.last = eqx.nn.Linear(WIDTH, 1, key=last)

    def __call__(self, x):
        return self.last(self.norm(jnp.tanh(self.first(x))))


@each_optimizer
def test_equinox(tx):
    model = EquinoxModel(jax.random.key(0))
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        value, grads = eqx.filter_value_and_grad(lambda m: _error(jax.vmap(m)(X)))(
            model
        )
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, state = tx.update(grads, state, params)
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(STEPS):
        model, state, value = step(model, state)
        losses.append(value)
    _assert_falls(losses)


def _trees():
    linen = LinenModel().init(jax.random.key(0), X)["params"]
    equinox = EquinoxModel(jax.random.key(0))
    return {
        "linen": linen,
        "nnx": nnx.state(NnxModel(nnx.Rngs(0)), nnx.Param),
        "equinox": eqx.filter(equinox, eqx.is_inexact_array),
    }


@pytest.mark.parametrize("name", ["linen", "nnx", "equinox"])
def test_decay_mask_finds_the_two_kernels_and_nothing_else(name):
    params = _trees()[name]
    mask = oht.decay_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    kernels = FEATURES * WIDTH + WIDTH
    total = kernels + WIDTH + 1 + 2 * WIDTH
    assert oht.mask_coverage(mask, params) == (2, 6, kernels, total)
    tx = oht.add_decayed_weights(1.0, oht.decay_mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    for u, p, decays in zip(
        jax.tree.leaves(updates),
        jax.tree.leaves(params),
        jax.tree.leaves(mask),
        strict=True,
    ):
        np.testing.assert_array_equal(u, p if decays else 0)


@pytest.mark.parametrize("name", ["linen", "nnx", "equinox"])
def test_a_mask_by_the_names_of_another_framework_is_silently_empty(name):
    """The names that decay elsewhere; a mask made by them covers nothing or fails."""
    other = {"linen": "weight", "nnx": "weight", "equinox": "kernel"}[name]
    params = _trees()[name]
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: other in jax.tree_util.keystr(path), params
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = optax.add_decayed_weights(1.0, mask)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert all(np.all(u == 0) for u in jax.tree.leaves(updates))
    assert oht.mask_coverage(mask, params).leaves == 0
    assert oht.mask_coverage(oht.decay_mask, params).leaves == 2


def test_decay_mask_refuses_what_it_cannot_tell_apart():
    kernels = {"kernel": jnp.ones((2, 2))}
    vectors = {"bias": jnp.ones(2)}
    for params in (kernels, vectors):
        with pytest.raises(ValueError, match="must cover some leaves and not all"):
            oht.decay_mask(params)
