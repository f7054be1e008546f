"""The study of the search for rules: its problems, and what its tables say."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import rule_search, rule_search_tables, unseen
from experiments.studies.training import Contestant
from experiments.tasks import problems
from optax_heavytail import rules


@pytest.mark.nightly
def test_noise_is_in_the_gradient_and_not_in_the_loss():
    made = unseen.problem("tumours, Pareto noise")
    found = problems.named()["tumours_pareto"]
    params, state = made.init(jax.random.key(0))
    batch = {"key": made.batches(3)["key"][7]}
    of_batch, of_noise = jax.random.split(jax.random.wrap_key_data(batch["key"]))

    def loss(params):
        return made.loss(params, state, (), batch)[0]

    value, grads = jax.value_and_grad(loss)(params)
    wanted, clean = jax.value_and_grad(found.loss)(params, of_batch)
    assert value == wanted
    noise = found.noise(jnp.zeros_like(params), of_noise)
    np.testing.assert_allclose(grads, clean + noise, rtol=1e-5, atol=1e-7)
    assert float(jnp.max(jnp.abs(noise))) > 0


def test_batches_are_those_of_their_seed():
    for name in unseen.PROBLEMS:
        made = unseen.problem(name)
        first, again, other = (made.batches(seed) for seed in (3, 3, 4))
        (key,) = first
        assert len(first[key]) == made.steps
        np.testing.assert_array_equal(first[key], again[key])
        assert not np.array_equal(first[key], other[key])


def test_characters_are_guessed_from_those_before_them():
    made = unseen.problem("characters")
    train, held = made.data
    assert held.shape == (unseen.HELD, unseen.CONTEXT + 1)
    assert set(np.unique(train)) == set(range(unseen.SYMBOLS))
    # A network that knows nothing has the loss of a guess.
    zeros = jax.tree.map(jnp.zeros_like, made.init(jax.random.key(0))[0])
    loss, share = made.evaluate(zeros, {}, made.data)
    assert float(loss) == pytest.approx(np.log(unseen.SYMBOLS), rel=1e-6)
    # One that says the last character again is right where two are alike.
    last = jnp.eye(unseen.SYMBOLS)[:, : unseen.HIDDEN]
    start = (unseen.CONTEXT - 1) * unseen.SYMBOLS
    same = zeros | {"in": zeros["in"].at[start:].set(last), "out": 50 * last.T}
    _, share = made.evaluate(same, {}, made.data)
    alike = (held[:, -1] == held[:, -2]) & (held[:, -2] < unseen.HIDDEN)
    unknown = (held[:, -2] >= unseen.HIDDEN) & (held[:, -1] == 0)
    assert float(share) == pytest.approx(np.mean(alike | unknown))


def test_a_rule_is_trained_downhill():
    contestant = rule_search._as_contestant("adam", 0.1)
    assert isinstance(contestant, Contestant)
    params = jnp.ones(3)
    tx = contestant.make(contestant.rate)
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates, -0.1, rtol=1e-5)


def test_every_known_rule_that_has_a_twin_here_is_known():
    assert set(rule_search.TWINS) <= set(rules.KNOWN)
    assert rule_search._differences("addsign") == {"eager": 0.0, "jit": 0.0}


def test_all_cells_are_different_and_json():
    keys = [json.dumps(c.settings) for c in rule_search.cells("cpu", Path())]
    assert len(set(keys)) == len(keys)
    rivals = len(rule_search.RIVALS) * len(unseen.PROBLEMS)
    assert len(keys) == 2 + rivals + 2 * len(rule_search.SEEDS)


def _searched(seed, evolved, drawn, losses):
    best = {"rule": "g", "nodes": 1, "first": -1.0, "second": -1.0, "rate": 0.1}
    tuned = {"rate": 0.1, "threshold": None, "is_inside": True, "accuracies": [0.5] * 5}
    return {
        "settings": {"measure": "search", "seed": seed},
        "result": {
            "scores": {
                "evolution": [-9.0] * 6 + [evolved, 0.0] * 97,
                "random": [drawn] * 200,
            },
            "proposed": {"evolution": 900, "random": 400},
            "best": best | {"refused": {}},
            "unseen": {name: tuned | {"losses": losses} for name in unseen.PROBLEMS},
        },
    }


def test_what_is_lower_is_below():
    noise = np.linspace(0, 0.01, 5)
    records = [
        _searched(i, -1.5 + noise[i], -1.0, (0.3 + noise).tolist()) for i in range(5)
    ]
    rival = {"rate": 0.1, "threshold": None, "is_inside": True, "accuracies": [0.5] * 5}
    for problem in unseen.PROBLEMS:
        settings = {"measure": "rival", "optimizer": "adamw", "problem": problem}
        losses = (0.2 + noise[::-1]).tolist()
        records.append({"settings": settings, "result": rival | {"losses": losses}})
    results = rule_search_tables._all(records, "search")
    methods = rule_search_tables._methods(results)
    given, without = (methods.splitlines()[i] for i in (2, 6))
    assert given.startswith("| 50 | -9.000 ± 0.000 | -1.000 ± 0.000 | -8.000")
    assert without.startswith("| 50, without the first 6 | -1.495 ± 0.004")
    assert "-0.495 [-0.500, -0.490]*" in without
    for block in rule_search_tables._unseen(records):
        mean = block.splitlines()[-1]
        assert "+0.100 [" in mean or "+0.100 (no interval)" in mean
        assert "rule of search 4" in block
