"""Training learned optimizers: estimators, checkpoints, and the command."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import learn
from experiments.common import fields
from experiments.common.errors import UserError
from experiments.configs import learn_lstm, learn_mlp
from experiments.learning import (
    checkpoints,
    episodes,
    estimators,
    functions,
    loop,
    lstm,
    report,
    rivals,
)
from optax_heavytail import learned
from tests.in_time import in_time, only
from tests.wrong_inputs import running

CONFIGS = {"lstm": learn_lstm, "mlp": learn_mlp}


# Estimators: influence that short windows do not see


def _slope(kind, workers, episodes_each=40, steps=12, window=2, decay=0.9):
    """Estimates for x_t = decay x_{t-1} + w, with loss x_t: each worker's mean."""
    sigma = 0.1

    def worker(key):
        def step(carry, i):
            x, total = carry
            is_new = i % (steps // window) == 0
            noise, total = estimators.perturb(
                kind, jax.random.fold_in(key, i), total, is_new
            )
            x = jnp.where(is_new, 0.0, x)
            losses = jnp.zeros(2)
            for _ in range(window):
                x = decay * x + jnp.array([1.0, -1.0]) * sigma * noise
                losses += x / window
            return (x, total), estimators.gradient(total, *losses, sigma)

        places = jnp.arange(episodes_each * steps // window)
        return jnp.mean(jax.lax.scan(step, (jnp.zeros(2), jnp.zeros(1)), places)[1])

    return np.asarray(jax.vmap(worker)(jax.random.split(jax.random.key(0), workers)))


@pytest.mark.parametrize("kind", estimators.KINDS)
def test_estimates_of_a_long_influence(kind):
    found = _slope(kind, 200)
    # x_t depends on w by 1 + 0.9 + ... + 0.9^(t-1).
    want = np.mean([(1 - 0.9**t) / 0.1 for t in range(1, 13)])
    error = found.std(ddof=1) / len(found) ** 0.5
    distance = abs(found.mean() - want) / error
    if kind == "truncated":
        assert distance > 20
    else:
        assert distance < 4
        assert error < 0.1 * want


@pytest.mark.parametrize("kind", estimators.KINDS)
def test_perturbations_begin_anew_with_an_episode(kind):
    before, key = jnp.full(4, 9.0), jax.random.key(0)
    noise, total = estimators.perturb(kind, key, before, jnp.array(True))
    np.testing.assert_array_equal(total, noise)
    assert np.all(np.abs(noise) < 5)
    noise, total = estimators.perturb(kind, key, before, jnp.array(False))
    want = {"nres": before, "pes": before + noise, "truncated": noise}[kind]
    np.testing.assert_array_equal(total, want)
    assert np.array_equal(noise, total) == (kind != "pes")


def test_one_worker_does_not_rule():
    gradients = jnp.array([[3.0, 4.0], [0.3, 0.0], [jnp.nan, 1.0], [jnp.inf, 0.0]])
    found = estimators.clipped_mean(gradients, 1.0)
    np.testing.assert_allclose(found, [(0.6 + 0.3) / 4, 0.8 / 4], rtol=1e-6)


def _smoke(model, **changes):
    config = CONFIGS[model].get_config("smoke")
    config.update(changes)
    return config


def test_the_gradient_of_a_window_is_that_of_all_its_steps():
    """Of a linear function, whose gradients depend on no step."""
    linear = functions.quadratics()._replace(
        loss=lambda x, numbers, key: jnp.sum(numbers[1] * x)
    )
    training = lstm.Training(_smoke("lstm", steps=3, window=3, functions=1), 0)
    training.family = linear

    def keep(slopes, outer, weights):
        del outer
        return jax.tree.map(jnp.zeros_like, weights), slopes

    training._outer = training._outer._replace(update=keep)
    key, weights = jax.random.key(3), training.start().weights
    _, slopes, _ = jax.jit(training._make_episode())(weights, weights, key)
    numbers = jax.vmap(linear.draw)(jax.random.split(jax.random.split(key, 3)[0], 2))
    # After t steps the output's bias has moved each coordinate by t of it.
    want = float(jnp.mean(jnp.sum(numbers[1], axis=1))) * (1 + 2 + 3)
    assert float(slopes.b_out) == pytest.approx(want, rel=1e-5)


# Episodes


@pytest.mark.nightly
def test_updates_by_leaf_are_those_of_leaves():
    """One array in place of leaves, with the sizes that leaves have."""
    weights = learned.init_mlp(jax.random.key(1))
    tx = learned.scale_by_mlp(weights, rms=episodes.RMS)
    leaves = (6, 2, 3)
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(4, 11)), jnp.float32)
    grads = grads.at[:, 6:8].set(0.0)

    def step(states, g):
        got, whole = tx.update(g, states[0])
        want, parts = tx.update(split(g), states[1])
        return (whole, parts), (episodes.by_leaf(leaves, got), jnp.concatenate(want))

    def split(vector):
        return list(jnp.split(vector, np.cumsum(leaves)[:-1]))

    states = tx.init(grads[0]), tx.init(split(grads[0]))
    _, (got, want) = jax.jit(lambda s: jax.lax.scan(step, s, grads))(states)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    assert np.all(got[:, 6:8] == 0)


@pytest.mark.parametrize(
    "make", only([episodes.quadratics], [episodes.networks, episodes.quadratics])
)
def test_episodes_are_learnt_from(make):
    """With the untrained weights losses fall, and a key is one episode."""
    family, weights = make(), learned.init_mlp(jax.random.key(0))
    key = jax.random.key(5)
    chosen = episodes.setting(family, key, 100)
    assert int(chosen.horizon) == 100
    quiet = chosen._replace(
        has_pareto=jnp.array(False),
        has_spikes=jnp.array(False),
        rate=jnp.array(0.1),
        units=jnp.ones(sum(family.leaves)),
    )
    run = jax.jit(
        lambda s: episodes.steps(
            family, weights, key, s, episodes.begin(family, key, s), jnp.arange(60)
        )[1]
    )
    losses = np.asarray(run(quiet))
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    np.testing.assert_array_equal(run(quiet), losses)
    assert not np.array_equal(run(quiet._replace(has_spikes=True)), losses)


def test_scores_of_losses():
    losses = jnp.array([0.0, 1.0, 7.0, jnp.nan, jnp.inf])
    want = np.log([1e-3, 1.001, 5.001, 5.001, 5.001]).mean()
    assert float(episodes.score(losses)) == pytest.approx(want, rel=1e-5)


# Rivals


@pytest.mark.nightly
def test_the_best_rate_is_found_for_each_horizon():
    family = functions.quadratics()
    sgd = functions.RIVALS["sgd"]
    tuned = rivals.tune(family, sgd, 0.01, (5, 40), 6, 9, (1, 2))
    assert tuned[5].curves.shape == (2, 6)
    assert tuned[40].curves.shape == (2, 41)
    for seed, curve in zip((1, 2), tuned[40].curves, strict=True):
        again = rivals.fresh_curve(family, sgd.make(tuned[40].rate), 40, 6, seed)
        np.testing.assert_allclose(curve, again, rtol=1e-4)
    # By hand, on the functions of the tuning.
    grid = rivals.rates(0.01, 9)
    ends = [
        rivals.fresh_curve(family, sgd.make(rate), 40, 6, rivals._TUNING)[-1]
        for rate in grid
    ]
    assert tuned[40].rate == grid[int(np.argmin(ends))]
    np.testing.assert_allclose(grid[1:] / grid[:-1], 2**0.5)
    assert len(grid) == 9


# Going on after a kill


class KilledError(Exception):
    pass


@pytest.mark.parametrize("model", in_time({m: m for m in CONFIGS}, "lstm".__eq__))
def test_a_training_that_was_killed_ends_where_it_would_have(
    model, tmp_path, monkeypatch
):
    size = {"lstm": {"functions": 4}, "mlp": {"outer_steps": 6, "longest": 4}}[model]
    training = loop.make(_smoke(model, **size), 0)
    whole = loop.run(training)
    advance, calls = training.advance, itertools.count()

    def dies(state):
        if next(calls) == 2:
            raise KilledError
        return advance(state)

    monkeypatch.setattr(training, "advance", dies)
    with pytest.raises(KilledError):
        loop.run(training, tmp_path)
    again = loop.run(training, tmp_path)
    assert next(calls) == training.total + 1
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(got, want)
    assert [p.name for p in tmp_path.iterdir()] == [checkpoints.FILE]
    assert np.all(np.isfinite(again.history))


def test_damaged_checkpoints_are_refused(tmp_path):
    path, state = tmp_path / "c.npz", {"a": jnp.ones(3), "b": jnp.int32(2)}
    assert checkpoints.read(path, state) is None
    checkpoints.write(path, state)
    read = checkpoints.read(path, state)
    assert read["b"].dtype == jnp.int32
    np.testing.assert_array_equal(read["a"], state["a"])
    whole = path.read_bytes()
    for content in (whole[:-9], whole[:200] + b"x" + whole[201:], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged; delete it to start anew"):
            checkpoints.read(path, state)
    path.write_bytes(whole)
    for other in ({"a": jnp.ones(4), "b": jnp.int32(2)}, {"a": jnp.ones(3)}):
        with pytest.raises(UserError, match="is of another program; delete it"):
            checkpoints.read(path, other)


# The command


# `.ci/run` has the short trainings of both.
@pytest.mark.nightly
@pytest.mark.parametrize("model", CONFIGS)
def test_the_command_trains_and_reports(model, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = [
        f"--config=experiments/configs/learn_{model}.py:smoke",
        f"--workdir={workdir}",
    ]
    assert not running.exit_code("experiments.learn", arguments, running.ROOT)
    assert f"report: {workdir}/report.html" in capsys.readouterr().out
    names = {"report.html", "report.md", "results.json", "weights.npz", "config.json"}
    names |= {"checkpoint.npz", "meta_loss.png"}
    names |= {"curves.png"} if model == "lstm" else {"response.png"}
    assert {p.name for p in workdir.iterdir()} == names
    weights, about = (f(workdir / "weights.npz") for f in (learned.load, learned.about))
    assert about["model"] == model
    make = learned.scale_by_lstm if model == "lstm" else learned.scale_by_mlp
    make(weights, **about["arguments"])
    results = json.loads((workdir / "results.json").read_text())
    assert results["about"]["config"]["model"] == model
    page = (workdir / "report.html").read_text()
    assert f"learned.scale_by_{model}(weights" in page
    # Once more: nothing is trained again.
    before = (workdir / "checkpoint.npz").read_bytes()
    assert not running.exit_code("experiments.learn", arguments, running.ROOT)
    assert (workdir / "checkpoint.npz").read_bytes() == before
    other = [*arguments, "--config.seed=7"]
    code = running.exit_code("experiments.learn", other, running.ROOT)
    assert "a training of another config, which differs in seed" in str(code)


@pytest.mark.parametrize("model", CONFIGS)
@pytest.mark.parametrize("variant", learn_lstm.VARIANTS)
def test_configs_are_what_their_fields_say(model, variant):
    config = CONFIGS[model].get_config(variant)
    learn.check(config)
    assert set(config.keys()) == set(CONFIGS[model].FIELDS)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("lstm", {"family": "cubics"}, r"config\.family=cubics: must be one of"),
        ("lstm", {"window": 3}, r"config\.window=3: must divide config\.steps=4"),
        ("lstm", {"rates": 4}, r"config\.rates=4: must be odd"),
        ("lstm", {"evaluations": 3}, r"config\.evaluations=3: must be at most 2"),
        ("mlp", {"sigma": 0.0}, r"config\.sigma=0\.0: must be a finite number, above"),
        ("mlp", {"estimator": "bptt"}, r"config\.estimator=bptt: must be one of"),
        ("mlp", {"workers": 0}, r"config\.workers=0: must be an integer"),
    ],
)
def test_wrong_configs(model, changes, message):
    with pytest.raises(UserError, match=message):
        learn.check(_smoke(model, **changes))


def test_other_configs():
    for module in CONFIGS.values():
        with pytest.raises(UserError, match="huge: must be full, short or smoke"):
            module.get_config("huge")
    config = _smoke("lstm")
    config.model = "velo"
    with pytest.raises(UserError, match=r"config\.model=velo: must be one of"):
        learn.check(config)


def test_the_response_is_that_of_the_transform():
    """A steady gradient: all ratios 1, the usual size, and no change of it."""
    weights = learned.init_mlp(jax.random.key(3))
    weights = weights._replace(w_2=0.3 * np.ones((8, 2), np.float32))
    tx = learned.scale_by_mlp(weights, rms=1.0)
    state = tx.init(jnp.zeros(2))
    for _ in range(50):
        updates, state = tx.update(jnp.array([1.0, -1.0]), state)
    u = report.response(weights, np.array([1.0, -1.0]), 0.0)
    np.testing.assert_allclose(updates, u / np.sqrt(np.mean(u**2)), rtol=1e-4)


def test_every_field_has_a_value():
    for model, module in CONFIGS.items():
        fields.check(module.get_config(), learn.FIELDS[model])
