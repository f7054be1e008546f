"""Studies: what is measured once is used again, and pages show what was measured."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from flax import nnx

import optax_heavytail as oht
from experiments import reproduce
from experiments.common import markdown
from experiments.common.errors import UserError
from experiments.models import perceptron
from experiments.studies import (
    catalogue,
    comparison,
    digits,
    intervals,
    neumann,
    neumann_tables,
    robustness,
    study,
    survey,
    survey_tables,
    theory,
    training,
    tuning,
)
from tests.in_time import only

MADE = [
    (name, scale)
    for name in catalogue.STUDIES
    for scale in study.SCALES
    if study.raw_file(name, scale).exists()
]


def counted(calls):
    """Three cells that note when they are measured."""

    def cell(number):
        def measure():
            calls.append(number)
            return {"square": number**2}

        return study.Cell({"number": number}, measure)

    return [cell(number) for number in range(3)]


def test_what_is_measured_is_used_again(tmp_path):
    path, calls = tmp_path / "new" / "raw.jsonl", []
    cells = counted(calls)
    done = study.run(cells, path)
    assert next(done) is cells[0]
    with path.open("ab") as file:
        file.write(b'{"settings": {"number": 1}, "res')  # killed here
    assert list(study.run(cells, path)) == cells
    assert calls == [0, 1, 2]
    records = study.wanted(path, cells)
    assert [record["result"]["square"] for record in records] == [0, 1, 4]
    assert {"commit", "hardware", "versions", "command", "time"} < set(records[0])
    list(study.run(cells, path))
    assert calls == [0, 1, 2]


def test_missing_results_are_said(tmp_path):
    cells = counted([])
    path = tmp_path / "raw.jsonl"
    list(study.run(cells[:2], path))
    with pytest.raises(UserError, match=r'^1 of 3 results .* {"number": 2}$'):
        study.wanted(path, cells)
    # Those of other settings are not shown.
    assert len(study.wanted(path, cells[1:2])) == 1


def test_blocks_are_put_between_their_marks():
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb"
    filled = markdown.fill(page, {"x": "| new |"})
    assert filled == "a\n<!-- begin x -->\n| new |\n<!-- end x -->\nb"
    assert markdown.fill(filled, {"x": "| new |"}) == filled
    for blocks in ({}, {"x": "", "y": ""}):
        with pytest.raises(UserError, match=r"has blocks \['x'\], not"):
            markdown.fill(page, blocks)
    end = "<!-- end x -->"
    for damaged in (page.replace(end, ""), page + end, page.replace("end x", "end y")):
        with pytest.raises(UserError, match=r"has ends of blocks \["):
            markdown.fill(damaged, {"x": ""})


@pytest.mark.parametrize("name", catalogue.STUDIES)
def test_every_study_has_a_page_and_results(name):
    assert (study.PAGES / f"{name}.md").exists()
    assert name in {made for made, _ in MADE}


@pytest.mark.parametrize(("name", "scale"), MADE)
def test_pages_show_what_was_measured(name, scale):
    cells = catalogue.STUDIES[name].cells(scale, Path())
    records = study.wanted(study.raw_file(name, scale), cells)
    own = (study.PAGES / f"{name}.md").read_text(encoding="utf-8")
    made = catalogue.blocks(name, scale, records, study.PAGES)
    for path, blocks in made.items():
        page = path.read_text(encoding="utf-8")
        assert markdown.fill(page, blocks) == page, path
    for file in catalogue.STUDIES[name].pictures(records):
        assert f"({file})" in own
        assert (study.PAGES / file).exists()
    assert not any("dirty" in record["commit"] for record in records)


def test_a_study_runs_from_the_command_to_the_page(tmp_path, monkeypatch, capsys):
    def tables(records):
        squares = [f"{record['result']['square']}" for record in records]
        return {"squares": markdown.table(["square"], [[square] for square in squares])}

    calls = []
    made = study.Study(
        lambda scale, data: counted(calls),
        tables,
        lambda records: {"x.png": b"picture"},
    )
    monkeypatch.setattr(catalogue, "STUDIES", {"toy": made})
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "PAGES", tmp_path)
    marks = [f"<!-- begin {n} -->\n<!-- end {n} -->\n" for n in ("squares", "origin")]
    (tmp_path / "toy.md").write_text("Words.\n" + "".join(marks))
    reproduce.main(["toy"])
    page = (tmp_path / "toy.md").read_text()
    assert page.startswith("Words.\n<!-- begin squares -->\n| square |\n| --- |\n| 0 |")
    assert "`python -m experiments.reproduce toy --scale=cpu`" in page
    assert "3 cells in 0 minutes" in page
    assert (tmp_path / "x.png").read_bytes() == b"picture"
    assert "3/3" in capsys.readouterr().out
    reproduce.main(["toy", "--scale=cpu"])
    assert calls == [0, 1, 2]
    with pytest.raises(UserError, match="invalid choice: 'none'"):
        reproduce.main(["none"])


def test_a_run_without_noise_is_gradient_descent(monkeypatch):
    """Of a quadratic and of x^2 + 3 sin^2 x, whose gradients JAX finds."""
    monkeypatch.setattr(theory, "noise", lambda kind, order: lambda key, shape: 0.0)
    monkeypatch.setattr(theory, "HORIZONS", (8,))
    found = theory.horizon("symmetric Pareto", 2.0, "sgd", 2, runs=3)
    x, squares = np.float32(3.0), []
    step = (8 / 2) ** 0.5 / theory.SMOOTHNESS / 2
    for _ in range(2):
        slope = jax.grad(lambda x: x**2 + 3 * jnp.sin(x) ** 2)(x)
        squares.append(theory.DIMENSION * slope**2)
        x = x - step * slope
    assert found["squares"] == pytest.approx([np.mean(squares)] * 3, rel=1e-4)
    monkeypatch.setattr(theory, "CHECKPOINTS", (1, 3))
    found = theory.rate("symmetric Pareto", 2.0, "sgd", runs=2)
    # Along an eigenvector h the steps 2, 4/3 multiply by 1 - 2 h and 1 - 4/3 h.
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(theory.DIMENSION,) * 2))
    start = basis.T @ rng.normal(size=theory.DIMENSION)
    h = np.geomspace(1, theory.MOST_CURVED, theory.DIMENSION)
    last = (1 - 2 * h) * (1 - 4 / 3 * h)
    means = [start, start * (1 + 2 * (1 - 2 * h) + 3 * last) / 6]
    errors = [0.5 * np.sum(h * mean**2) for mean in means]
    assert found["mean"] == pytest.approx(errors, rel=1e-4)
    assert theory.dimension("unequal", 3, "cclip", 2, runs=2)["errors"] == [0, 0]


def two_sided(kind, x):
    """P(X <= x) of the noise of order 1.5."""
    tail = 1.5 + theory.MARGIN
    if kind == "Student-t":
        return scipy.stats.t(tail).cdf(x)
    if kind == "skewed Pareto":
        return scipy.stats.pareto(tail).cdf(x + tail / (tail - 1))
    one_sided = scipy.stats.pareto(tail).cdf(np.abs(x))
    return np.where(x < 0, 1 - one_sided, 1 + one_sided) / 2


@pytest.mark.parametrize("kind", theory.NOISES)
def test_the_noise_has_its_law(kind):
    samples = theory.noise(kind, 1.5)(jax.random.key(0), (4, 2000))
    found = scipy.stats.kstest(np.ravel(samples), lambda x: two_sided(kind, x))
    assert found.pvalue > 0.01
    assert abs(np.corrcoef(samples)[0, 1]) < 0.1


def beyond(kind, x):
    """P(|X| > x), without cancellation far out."""
    tail = 1.5 + theory.MARGIN
    if kind == "Student-t":
        return 2 * scipy.stats.t(tail).sf(x)
    law, center = scipy.stats.pareto(tail), tail / (tail - 1)
    if kind == "skewed Pareto":
        return law.sf(center + x) + law.cdf(center - x)
    return law.sf(x)


@pytest.mark.parametrize("kind", theory.NOISES)
def test_moments_are_those_of_the_law(kind):
    """Against the integral of P(|X|^a > y), by another substitution."""
    order = 1.5

    # |X| beyond x has about x^(-tail) of the probability, so a power makes it tame.
    power = 40.0
    grid = np.linspace(0, 1, 400_001)[1:-1]
    x = (1 - grid) ** -power - 1
    values = (
        beyond(kind, x) * order * x ** (order - 1) * power * (1 - grid) ** (-power - 1)
    )
    whole = scipy.integrate.trapezoid(values, grid)
    assert theory.moment(kind, order) == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("method", theory.METHODS)
def test_methods_are_those_of_the_theorems(method):
    """The first two updates, by hand: thresholds G k^(1/a), steps 4 / (k + 1)."""
    bounds, order = np.array([2.0, 1.0]), 1.5
    tx = theory.transform(method, order, bounds)
    grads = np.array([30.0, -0.5])
    state, params = tx.init(jnp.zeros(2)), jnp.zeros(2)
    whole = np.sum(bounds**order) ** (1 / order)
    for k in (1, 2):
        updates, state = tx.update(jnp.asarray(grads, jnp.float32), state, params)
        grow = k ** (1 / order)
        tau = (0.01 * sum(0.99**j for j in range(k))) ** (1 / order) * np.abs(grads)
        clipped = {
            "sgd": grads,
            "gclip": grads * min(1, whole * grow / np.linalg.norm(grads)),
            "cclip": np.clip(grads, -bounds * grow, bounds * grow),
            "acclip": np.clip(grads, -tau, tau),
        }[method]
        np.testing.assert_allclose(updates, -4 / (k + 1) * clipped, rtol=1e-5)


def plain_sgd(rate):
    return optax.sgd(rate)


def test_a_grid_is_moved_until_its_best_point_is_inside():
    """Losses by formula: the best rate is 1, eight octaves below the middle."""
    measured = []

    def run(points, seeds):
        measured.extend(points)
        losses = np.array([[[abs(np.log2(p.rate))] for _ in seeds] for p in points])
        return training.Curves(losses, losses, {})

    def tune(**changes):
        contestant = training.Contestant(plain_sgd, **{"rate": 256.0} | changes)
        return tuning.tune(contestant, run, digits.PROTOCOL)

    tuned = tune()
    assert tuned.is_inside
    assert tuned.moves == 1
    assert tuned.best.rate == pytest.approx(1)
    assert len(tuned.losses) == digits.PROTOCOL.points
    assert min(tuned.rates) < tuned.best.rate < max(tuned.rates)
    # Of 25 half octaves the lowest is 4, and the next grid goes from 256 to 1/16.
    assert len(measured) == 25 + 12
    far = tune(rate=2.0**100)
    assert not far.is_inside
    assert far.moves == tuning.MOVES
    both = tune(rate=1.0, threshold=4.0)
    assert len(both.losses) == digits.PROTOCOL.points
    # The formula does not know the threshold: the first is as good as any.
    assert not both.is_inside


def of_rates(*rates):
    return tuning.points(rates, ())


def descend(rates, batches, labels, seed):
    """Logits of held-out images after each step of gradient descent, by hand."""
    (images, _), (held_out, _) = digits.load()
    model = perceptron.Perceptron(64, 64, 2, 10, rngs=nnx.Rngs(jax.random.key(seed)))
    graph, params = nnx.split(model, nnx.Param)

    @jax.jit
    def gradient(params, images, labels):
        def loss(params):
            logits = nnx.merge(graph, params)(images)
            chosen = logits[np.arange(len(labels)), labels]
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

        return jax.grad(loss)(params)

    after = []
    for rate, rows in zip(rates, batches, strict=True):
        grads = gradient(params, images[rows], labels[rows])
        params = jax.tree.map(lambda p, g, rate=rate: p - rate * g, params, grads)
        after.append(np.asarray(nnx.merge(graph, params)(held_out), np.float64))
    return after


def cross_entropy(logits):
    """Of held-out images, the mean."""
    truth = digits.load()[1][1]
    chosen = logits[np.arange(len(truth)), truth]
    return np.mean(scipy.special.logsumexp(logits, axis=-1) - chosen)


@pytest.mark.parametrize("side_by_side", only({True}, [True, False]))
def test_lanes_are_single_runs(side_by_side):
    """Against a loop in NumPy's order, with label noise and a spike."""
    setup = digits.Setup(
        steps=4, batch_size=32, label_noise=0.5, spike_every=3, spike=5.0
    )
    contestant = training.Contestant(
        plain_sgd, 1.0, observe=lambda state: {"count": optax.tree.get(state, "count")}
    )
    problem = digits.problem(setup)._replace(side_by_side=side_by_side)
    curves = training.runner(contestant, problem)(of_rates(0.1, 0.3), (3, 4))
    assert curves.losses.shape == curves.accuracies.shape == (2, 2, 4)
    assert curves.seen["count"].tolist() == [[[1, 2, 3, 4]] * 2] * 2
    images, labels = digits.load()[0]
    labels = digits.noisy_labels(labels, setup, 4)
    # Warm-up over no step, then a cosine over four; a spike in the second.
    rates = 0.15 * (1 + np.cos(np.pi * np.arange(4) / 4)) * [1, 5, 1, 1]
    rows = digits.batch_indices(setup, len(images), 4)
    for step, logits in enumerate(descend(rates, rows, labels, 4)):
        want = pytest.approx(cross_entropy(logits), rel=1e-4)
        assert curves.losses[1, 1, step] == want
    assert 0.4 < np.mean(labels == digits.load()[0][1]) < 0.65


def test_a_lost_run_is_the_worst():
    problem = digits.problem(digits.Setup(steps=2, batch_size=8))
    run = training.runner(training.Contestant(plain_sgd, 1.0), problem)
    assert run(of_rates(1e30), (0,)).losses[0, 0, -1] == training.LOST


def test_the_range_of_good_rates_is_unbroken():
    losses = np.array([1.0, 1.01, 3.0, 1.04, 1.0, 1.02, 1.2, 1.01])
    losses[4] = 0.99
    assert robustness.octaves(losses, 1.05) == 1.0  # 1.04 is 5.05% above: 2 points
    assert robustness.octaves(losses, 1.06) == 1.5
    assert robustness.octaves(losses, 4.0) == 4.0


def test_steps_to_a_target_are_those_of_the_first_loss_below():
    losses = np.array([[3.0, 1.0, 2.0, 0.5], [3.0, 2.0, 1.5, 1.01], [0.1, 3, 3, 3]])
    found = neumann.steps_to(losses, np.array([2, 4, 6, 9]), 1.0)
    assert found.tolist() == [4, np.inf, 2]
    pairs = neumann_tables.ratio(np.array([2.0, 8.0]), np.array([4.0, 4.0]))
    assert isinstance(pairs, intervals.Difference)
    np.testing.assert_allclose(np.exp(pairs.values), [0.5, 2.0])
    assert pairs.show is math.exp
    assert neumann_tables.ratio(np.array([2.0, np.nan]), np.array([4.0, 4.0])) == ""


def test_comparisons_are_of_pairs_and_of_the_best_baseline():
    def result(losses, accuracies):
        kept = {"losses": losses, "accuracies": accuracies, "is_inside": True}
        return kept | {"rate": 0.1, "threshold": None}

    results = {
        "momentum": result([1.0, 3.0], [0.5, 0.25]),
        "adamw": result([2.0, 3.0], [0.5, 0.75]),
        "other": result([2.0, 4.0], [0.75, 0.5]) | {"is_inside": False},
    }
    assert comparison.best_baseline(results) == "momentum"
    above = comparison.points_above(results["other"], results["momentum"])
    np.testing.assert_array_equal(above.values, [25.0, 25.0])
    table = comparison.training_table(results, "momentum").splitlines()
    assert table[0].split(" | ")[4] == "minus momentum's"
    assert table[-1] == (
        "| other (edge of its grid) | 0.1 |  | 3.000 ± 1.414 | +1.000 (no interval) "
        "| 62.5% |"
    )


ONE_RUN = tuning.Protocol(1, 2.0, (0,), (1,))


def test_speed_is_tuned_for_few_steps(monkeypatch):
    """By formula: 30 steps at a rate of 0.4 and more at others, then a step a seed."""

    def runner(contestant, problem):
        at = training.evaluation_steps(problem)
        assert contestant.schedule(600)(500) == 1

        def run(points, seeds):
            rates = np.log2([point.rate / 0.4 for point in points])[:, None, None]
            needed = 30 * (1 + rates**2) + np.array(seeds)[:, None] ** 2
            losses = np.where(at < needed, 0.15 + 1e-6, 0.1)
            return training.Curves(losses, losses, {})

        return run

    monkeypatch.setattr(training, "runner", runner)
    found = neumann.speed("neumann", 64, target=0.15, budget=180)
    assert found["rate"] == pytest.approx(0.4)
    # 180 evaluations: 30 steps and 100, 121, 144, 169 and 196 of the seeds.
    assert found["steps"] == [130, 151, 174, None, None]
    # Kept with five digits.
    assert min(found["tuning_steps"]) == pytest.approx(30 + (0 + 1 + 4) / 3, rel=1e-4)
    assert max(found["tuning_steps"]) == 360


def test_two_loops_have_as_many_gradients(monkeypatch):
    cells = [
        c.settings for c in neumann.cells("cpu", Path()) if "inner_steps" in c.settings
    ]
    assert {s["steps"] * (s["inner_steps"] + 1) for s in cells} == {140}
    problem, calls = digits.problem, []

    def counted(setup):
        made = problem(setup)

        def loss(*arguments):
            jax.debug.callback(lambda: calls.append(1))
            return made.loss(*arguments)

        return made._replace(loss=loss, side_by_side=False)

    monkeypatch.setattr(neumann, "PROTOCOL", ONE_RUN)
    monkeypatch.setattr(digits, "problem", counted)
    neumann.two_loop(inner_steps=3, steps=35, batch_size=32)
    jax.effects_barrier()
    assert len(calls) == 2 * 140  # one run to tune, one of a fresh seed


def test_burn_in_and_resets_are_of_whole_epochs():
    for batch_size, epoch in ((64, 22.47), (neumann.IMAGES, 1)):
        variant = neumann.contestant("neumann, burn-in and resets", batch_size)
        state = variant.make(0.1).init({"w": jnp.zeros(3)})
        assert int(state.next_reset) == round(5 * epoch) + 1
        assert int(state.interval) == round(10 * epoch)
    (images, _), _ = digits.load()
    assert len(images) == neumann.IMAGES


@pytest.mark.nightly
def test_an_ensemble_is_the_mean_prediction_of_ends_of_cycles():
    setup = digits.Setup(steps=4, batch_size=32)
    base = training.Contestant(plain_sgd, 1.0)
    method = survey.with_cycles(base, (2, 2, 1))["ensemble"]
    run = training.runner(method.contestant, method.problem(setup))
    curves = run(of_rates(0.5), (4,))
    (images, labels), (_, truth) = digits.load()
    rows = digits.batch_indices(setup, len(images), 4)
    logits = descend([0.5, 0.25, 0.5, 0.25], rows, labels, 4)
    first, second = (scipy.special.softmax(logits[i], axis=-1) for i in (1, 3))
    for step, predicted in ((1, first), (2, first), (3, (first + second) / 2)):
        loss = cross_entropy(np.log(predicted))
        assert curves.losses[0, 0, step] == pytest.approx(loss, rel=1e-4)
        right = np.mean(np.argmax(predicted, axis=-1) == truth)
        assert curves.accuracies[0, 0, step] == pytest.approx(right)
    assert curves.losses[0, 0, 0] == training.LOST


def test_a_growing_batch_has_the_same_images_in_the_same_order():
    setup = digits.Setup(steps=6, batch_size=32, label_noise=0.5)
    plan = oht.BatchSizePlan(np.array([0.5, 0.5, 0.25]), np.array([32, 64, 96]))
    contestant = training.Contestant(plain_sgd, 1.0, schedule=lambda _: plan.schedule())
    problem = survey.growing(plan, setup)
    curves = training.runner(contestant, problem)(of_rates(1.0), (4,))
    images, labels = digits.load()[0]
    rows = digits.batch_indices(setup, len(images), 4)
    noisy = digits.noisy_labels(labels, setup, 4)
    batches = [rows[0], np.concatenate(rows[1:3]), np.concatenate(rows[3:])]
    for step, logits in enumerate(descend([0.5, 0.5, 0.25], batches, noisy, 4)):
        want = pytest.approx(cross_entropy(logits), rel=1e-4)
        assert curves.losses[0, 0, step] == want


def test_schedules_of_the_survey_end_together():
    for number, first, growth in survey.CYCLES.values():
        assert sum(first * growth**i for i in range(number)) == survey.STEPS
    for schedule in survey.SCHEDULES.values():
        plan = survey.batch_plan(schedule)
        sizes, rates = plan.batch_size, plan.learning_rate
        assert 0 <= sizes.sum() - survey.STEPS * survey.BATCH_SIZE < sizes[-1]
        assert len(sizes) < 0.7 * survey.STEPS
        assert max(rates) == pytest.approx(1)
        assert rates[-1] * survey.BATCH_SIZE / sizes[-1] <= 0.125
    problem = digits.problem(survey.SETUPS["right"])
    problem = problem._replace(evaluations=survey.EVALUATIONS)
    assert set(survey_tables.LOOKS) <= set(training.evaluation_steps(problem).tolist())
