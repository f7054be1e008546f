import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from tests.compare import assert_leaf_close, assert_trees_equal
from tests.driving import follow, heavy_gradients, jitted, starting_point
from tests.in_time import only

WINDOW = 8
SIZES = (1e-37, 1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38)


def spikes(log_norms, deviations, window):
    """Not ours: which steps are skipped, from a list of the safe ones."""
    kept, skipped = [], []
    for s in log_norms:
        last = np.array(kept[-window:])
        if np.isnan(s) or np.isposinf(s):
            skipped.append("nonfinite")
            continue
        if len(kept) >= window and np.isfinite(s):
            median = np.median(last)
            deviation = 1.4826 * np.median(np.abs(last - median))
            if s > median + deviations * max(deviation, 0.05):
                skipped.append("spike")
                continue
        skipped.append(None)
        if np.isfinite(s):
            kept.append(s)
    return skipped


def bad_gradients(steps=60):
    """Steps with inf, NaN, zeros and rising spikes among ordinary ones."""
    rng = np.random.default_rng(3)
    history = []
    for k in range(steps):
        size = {11: 1e3, 17: np.nan, 23: np.inf, 24: 0.0, 31: 50.0, 40: 1e30}.get(k, 1)
        history.append({"w": size * rng.normal(size=3), "b": rng.normal(size=())})
        history[-1]["b"] *= 1 if np.isfinite(size) else 0
        history[-1]["b"] *= size != 0
        if np.isinf(size):
            history[-1]["w"][1:] = 0.5
    return history


@pytest.mark.parametrize("deviations", only({3.0}, [3.0, 10.0]))
def test_beside_a_loop_that_leaves_the_skipped_steps_out(deviations):
    grads = bad_gradients()
    with np.errstate(divide="ignore"):
        norms = [np.hypot(np.linalg.norm(g["w"]), g["b"]) for g in grads]
        skipped = spikes(np.log(norms), deviations, WINDOW)
    assert {"spike", "nonfinite", None} == set(skipped)
    inner = oht.acclip(0.1, normalize=True)
    tx = oht.skip_if_unsafe(inner, max_deviations=deviations, window=WINDOW)
    start = {"w": np.ones(3), "b": np.ones(())}
    with jax.enable_x64(True):
        updates, _, state = follow(tx, grads, start)
        safe = [g for g, reason in zip(grads, skipped, strict=True) if reason is None]
        want, _, inner_state = follow(inner, safe, start)
        later = iter(want)
        for got, reason in zip(updates, skipped, strict=True):
            expected = jax.tree.map(np.zeros_like, start) if reason else next(later)
            for name, leaf in expected.items():
                assert_leaf_close(got[name], leaf, 1e-12)
        for got, leaf in zip(
            *map(jax.tree.leaves, (state.inner_state, inner_state)), strict=True
        ):
            np.testing.assert_allclose(got, leaf, rtol=1e-12)
    assert int(state.count) == len(grads)
    assert int(state.num_spikes) == skipped.count("spike")
    assert int(state.num_nonfinite) == skipped.count("nonfinite")
    assert not state.limit_reached


def test_a_skipped_step_changes_no_bit_of_the_inner_state():
    inner = oht.lambc(0.1, weight_decay=0.1)
    tx = jitted(oht.skip_if_unsafe(inner, window=2))
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(3):
        _, state = tx.update(params, state, params)
    for bad in (jnp.nan, jnp.inf, -jnp.inf, 1e30):
        grads = {"w": params["w"].at[1, 1].set(bad), "b": params["b"]}
        updates, later = tx.update(grads, state, params)
        assert_trees_equal(updates, jax.tree.map(jnp.zeros_like, params))
        assert_trees_equal(later.inner_state, state.inner_state)
        assert_trees_equal(later.norms, state.norms)


def test_the_norm_is_measured_before_clipping():
    """Behind a clip no gradient could ever be a spike."""
    clipped = optax.chain(oht.clip_by_norm(1.0), optax.sgd(1.0))
    outside = oht.skip_if_unsafe(clipped, window=2)
    inside = optax.chain(oht.clip_by_norm(1.0), oht.skip_if_unsafe(optax.sgd(1.0)))
    grads = [{"w": np.float32([size])} for size in (1.0, 1.0, 1e6)]
    zeros = {"w": np.zeros(1, np.float32)}
    updates, _, state = follow(outside, grads, zeros)
    assert int(state.num_spikes) == 1
    assert float(updates[-1]["w"][0]) == 0.0
    updates, _, _ = follow(inside, grads, zeros)
    assert float(updates[-1]["w"][0]) == -1.0


def test_bad_values_never_enter_the_rule():
    """A mean of all norms, as trainers keep it, is NaN from the first NaN on."""
    sizes = [1.0] * WINDOW + [np.nan, np.inf, 1e20] * 3 + [1.0] * 5
    grads = [{"w": np.float32([size])} for size in sizes]
    tx = oht.skip_if_unsafe(optax.sgd(1.0), window=WINDOW)
    updates, _, state = follow(tx, grads, {"w": np.zeros(1, np.float32)})
    assert [float(u["w"][0]) for u in updates[-5:]] == [-1.0] * 5
    assert (int(state.num_nonfinite), int(state.num_spikes)) == (6, 3)
    assert_leaf_close(state.norms.numbers, np.ones(WINDOW), 0)  # no 1e20
    running_mean = functools.reduce(lambda mean, x: 0.9 * mean + 0.1 * x, sizes)
    assert np.isnan(running_mean)


def test_after_the_limit_nothing_is_applied_and_the_state_says_so():
    """Beside optax, which then applies the NaN."""
    sizes = [1.0] + [np.nan] * 6 + [1.0]
    grads = [{"w": np.float32([size])} for size in sizes]
    zeros = {"w": np.zeros(1, np.float32)}
    tx = oht.skip_if_unsafe(optax.sgd(1.0), max_in_a_row=4)
    _, iterates, state = follow(tx, grads, zeros)
    assert float(iterates[-1]["w"][0]) == -2.0
    assert bool(optax.tree.get(state, "limit_reached"))
    assert int(state.num_in_a_row) == 0
    _, _, state = follow(tx, grads[:4], zeros)
    assert not state.limit_reached
    _, _, state = follow(tx, grads[:5], zeros)
    assert bool(state.limit_reached)
    theirs = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=4)
    _, iterates, _ = follow(theirs, grads, zeros)
    assert np.isnan(iterates[-1]["w"][0])


def test_the_window_moves_on_when_the_counts_have_reached_their_largest_number():
    tx = jitted(oht.skip_if_unsafe(optax.sgd(1.0), window=WINDOW))
    state = tx.init(jnp.zeros(1))
    largest = jnp.array(np.iinfo(np.int32).max)
    norms = state.norms._replace(numbers=jnp.ones(WINDOW), seen=largest)
    state = state._replace(count=largest, norms=norms)
    for k in range(WINDOW):
        _, state = tx.update(jnp.exp(-jnp.array([1.0 + k])), state)
    np.testing.assert_allclose(
        np.log(state.norms.numbers), -1.0 - np.arange(WINDOW), rtol=1e-6
    )
    assert int(state.count) == int(state.norms.seen) == int(largest)


def test_gradients_that_grow_for_good_end_at_the_limit():
    sizes = [1.0] * WINDOW + [1e3] * 5
    grads = [{"w": np.float32([size])} for size in sizes]
    tx = oht.skip_if_unsafe(optax.sgd(1.0), window=WINDOW, max_in_a_row=5)
    _, _, state = follow(tx, grads, {"w": np.zeros(1, np.float32)})
    assert bool(state.limit_reached)


@pytest.mark.parametrize("size", only({1e-37, 3e38}, SIZES))
def test_sizes_whose_squares_leave_float32(size):
    """Steady gradients of any size are safe; one that is far larger is not."""
    largest = float(np.finfo(np.float32).max)
    tx = oht.skip_if_unsafe(optax.sgd(1.0), window=2)
    grads = [{"w": np.float32([size / 2, size / 3])} for _ in range(3)]
    grads.append({"w": np.float32([min(100 * size, largest), 0.0])})
    _, _, state = follow(tx, grads, {"w": np.zeros(2, np.float32)})
    assert int(state.num_nonfinite) == 0
    assert int(state.num_spikes) == 1


def test_float16_gradients_whose_norm_is_no_float16():
    tx = jitted(oht.skip_if_unsafe(optax.sgd(0.001), window=2))
    grads = jnp.full(1000, 6e4, jnp.float16)
    state = tx.init(grads)
    for _ in range(4):
        updates, state = tx.update(grads, state)
        assert updates.dtype == jnp.float16
        np.testing.assert_allclose(updates, -60.0, rtol=1e-3)
    assert int(state.num_nonfinite) == int(state.num_spikes) == 0


@pytest.mark.nightly
def test_few_heavy_tailed_gradients_are_spikes():
    """What the docstring says of the default, and none that is Gaussian."""
    steps, dim = 4000, 1000
    rng = np.random.default_rng(0)
    rates = {}
    for name, draw in {
        "gaussian": rng.normal(size=(steps, dim)),
        "student": rng.standard_t(1.5, size=(steps, dim)),
    }.items():
        tx = oht.skip_if_unsafe(optax.sgd(0.0))
        grads = jnp.asarray(draw, jnp.float32)
        run = jax.jit(
            lambda grads, tx=tx: jax.lax.scan(
                lambda state, g: (tx.update(g, state)[1], None),
                tx.init(grads[0]),
                grads,
            )[0]
        )
        rates[name] = int(run(grads).num_spikes) / steps
    assert rates["gaussian"] == 0.0
    assert 0.0 < rates["student"] < 0.002


def test_without_a_rule_on_the_norm_only_nonfinite_ones_are_skipped():
    grads = heavy_gradients()
    grads[50]["w"][0, 0] = np.nan
    tx = oht.skip_if_unsafe(optax.sgd(0.1), max_deviations=None, window=2)
    _, _, state = follow(tx, grads, starting_point())
    assert (int(state.num_nonfinite), int(state.num_spikes)) == (1, 0)


def test_all_devices_skip_together():
    """A spike that only one of them can see."""
    devices = jax.devices("cpu")[:4]
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), axis_types=kinds, devices=devices)
    spec = jax.sharding.PartitionSpec("x")
    tx = oht.skip_if_unsafe(optax.sgd(1.0), window=2, axis_name="x")
    state = tx.init(jnp.zeros(1))

    @jax.jit
    def update(grads, state):
        specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), state)
        return jax.shard_map(
            tx.update, mesh=mesh, in_specs=(spec, specs), out_specs=(spec, specs)
        )(grads, state)

    for grads, want in (
        (jnp.ones(4), -1.0),
        (jnp.ones(4), -1.0),
        (jnp.ones(4).at[2].set(1e6), 0.0),
        (jnp.ones(4).at[1].set(jnp.nan), 0.0),
    ):
        updates, state = update(grads, state)
        assert updates.tolist() == [want] * 4
    assert int(state.num_spikes) == int(state.num_nonfinite) == 1


def test_derivatives_of_a_skipped_step_are_zero():
    tx = oht.skip_if_unsafe(optax.adam(0.1))
    state = tx.init(jnp.ones(2))
    slope = jax.jit(jax.grad(lambda g: jnp.sum(tx.update(g, state)[0])))
    assert slope(jnp.array([jnp.nan, 1.0])).tolist() == [0.0, 0.0]


def losses(tx, values, grads=None):
    """The updates of a step of 1 each, of which 0 was skipped."""
    tx, out = jitted(tx), []
    state = tx.init(jnp.zeros(1))
    for k, value in enumerate(values):
        grad = jnp.array([1.0 if grads is None else grads[k]])
        updates, state = tx.update(grad, state, value=value)
        out.append(float(updates[0]))
    return out, state


def test_a_loss_far_above_the_last_is_skipped():
    tx = oht.skip_if_unsafe(optax.sgd(-1.0), max_value_deviations=6.0, window=4)
    values = [1.0, 1.02, 0.98, 1.01, 5.0, 1.0, -3.0, 1.0]
    out, state = losses(tx, values)
    assert out == [1.0] * 4 + [0.0, 1.0, 1.0, 1.0]
    assert int(state.num_value_spikes) == 1
    assert int(state.num_spikes) == int(state.num_nonfinite) == 0
    assert 5.0 not in state.values.numbers


def test_one_nan_loss_costs_one_step():
    """Also without a rule on the loss; a running mean would skip for the window."""
    tx = oht.skip_if_unsafe(optax.sgd(-1.0), window=4)
    out, state = losses(tx, [1.0] * 6 + [np.nan] + [1.0] * 6)
    assert out == [1.0] * 6 + [0.0] + [1.0] * 6
    assert int(state.num_nonfinite) == 1
    assert int(state.values.seen) == 12


def test_a_new_level_is_taken_after_too_many_in_a_row():
    tx = oht.skip_if_unsafe(
        optax.sgd(-1.0), max_value_deviations=6.0, window=4, max_in_a_row=3
    )
    values = [1.0] * 4 + [20.0] * 3 + [np.nan] + [20.0] * 4
    out, state = losses(tx, values)
    assert out == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    assert bool(state.limit_reached)
    assert int(state.values.seen) == int(state.norms.seen) == 4  # both start anew
    assert int(state.num_in_a_row) == 0


def test_mean_and_all_are_the_published_rule():
    """A window with a spike in it skips what the median would."""
    kwargs = {"max_value_deviations": 3.0, "max_deviations": None, "window": 8}
    values = [1.0, 1.1, 0.9, 1.0, 9.0, 1.0, 1.0, 9.0]
    published = oht.skip_if_unsafe(
        optax.sgd(-1.0), rule="mean", remember="all", **kwargs
    )
    assert losses(published, values)[0] == [1.0] * 4 + [0.0] + [1.0] * 3
    ours = oht.skip_if_unsafe(optax.sgd(-1.0), rule="mean", **kwargs)
    assert losses(ours, values)[0] == [1.0] * 4 + [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [jnp.ones(2), jnp.array(1), True])
def test_a_loss_that_is_no_number_is_named(bad):
    tx = oht.skip_if_unsafe(optax.sgd(1.0))
    with pytest.raises(ValueError, match="value, the loss, must be one real"):
        tx.update(jnp.ones(1), jax.jit(tx.init)(jnp.zeros(1)), value=bad)


def test_the_loss_reaches_the_optimizer():
    seen = []

    def update(updates, state, params=None, *, value):
        del params
        seen.append(float(value))
        return updates, state

    inner = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = oht.skip_if_unsafe(inner)
    tx.update(jnp.ones(1), tx.init(jnp.zeros(1)), value=3.0)
    assert seen == [3.0]
