"""The gate of the learned weights: its tasks, its scores, and when it is passed."""

import jax
import numpy as np
import pytest

from experiments.studies import learned_gate, learned_tables, learned_tasks


@pytest.mark.nightly
def test_tasks_begin_at_their_ceilings_and_can_be_learnt():
    assert tuple(learned_tasks.named()) == learned_gate.TASKS
    for name in ("autoencoder", "Rosenbrock", "wine"):
        problem = learned_tasks.named()[name]
        weights = problem.init(jax.random.key(0))
        assert weights.shape == (sum(problem.leaves),)
        start = float(problem.validate(weights)[0])
        assert 0.3 * problem.ceiling < start < 3 * problem.ceiling
        run = learned_gate.lane(problem, learned_gate.CONTESTANTS["adamw"]())
        _, validation, last = jax.jit(run)(0.03, 0, 60)
        assert float(last) < start
        assert float(validation) < np.log(start)


def test_letters_are_of_a_text():
    data = learned_tasks.letters_data()
    assert data.inputs.shape[1] == 3 * data.classes
    np.testing.assert_array_equal(data.inputs.sum(axis=1), 3)
    # The commonest letter is no answer to all.
    assert 0.05 < np.mean(data.held_labels == np.bincount(data.labels).argmax()) < 0.3


def test_the_interquartile_mean():
    values = np.array([[9.0, 1, 2, 3, 4, 5, 6, -90]])
    assert learned_gate.iqm(values) == pytest.approx([3.5])
    assert learned_gate.iqm(np.arange(5.0)[None]) == pytest.approx([2.0])
    assert learned_gate.iqm(np.array([[0.0, 0, 0, 0, 4]])) == pytest.approx([0.0])


def test_a_loss_that_is_lost_is_the_worst():
    losses = np.array([0.0, 1.0, 9.0, np.nan, np.inf], np.float32)
    want = np.log([1e-3, 1.001, 5.001, 5.001, 5.001])
    np.testing.assert_allclose(
        learned_gate.logarithm(losses), want, rtol=1e-5, atol=1e-6
    )


def _records(shift, worst=0.0):
    """Of all tasks: the MLP's scores are its rivals' plus a shift and small noise."""
    rng = np.random.default_rng(0)
    for task in learned_gate.TASKS:
        for name in learned_gate.CONTESTANTS:
            for length, steps in learned_gate.STEPS.items():
                scores = np.zeros(5)
                if name == learned_gate.WEIGHTS:
                    scores = shift[length] + 1e-3 * rng.normal(size=5)
                    scores += worst if task == "wine" else 0.0
                settings = {"task": task, "optimizer": name, "steps": steps}
                result = {"train": scores.tolist(), "validation": scores.tolist()}
                yield {"settings": {"part": "gate", **settings}, "result": result}


@pytest.mark.parametrize(
    ("shift", "worst", "fails"),
    [
        ({"x1": -0.1, "x5": 0.0}, 0.0, None),
        ({"x1": -0.1, "x5": -0.3}, 0.0, None),
        ({"x1": 0.0, "x5": -0.3}, 0.0, "at 150 steps: the interval is not below 0"),
        ({"x1": -0.1, "x5": 0.05}, 0.0, "at 750 steps: the interval is above 0"),
        ({"x1": -0.1, "x5": -0.1}, 0.3, "wine is worse by more than 0.1"),
    ],
)
def test_when_the_gate_is_passed(shift, worst, fails):
    records = list(_records(shift, worst))
    found = learned_tables.failures(records)
    assert bool(found) == (fails is not None)
    verdict = learned_tables.verdict(records)
    assert ("passes the gate" in verdict) == (not found)
    assert all(fails in line for line in found)
    assert all(f"- {line}" in verdict for line in found)
    table = learned_tables.gate_table(records)
    assert table.count("\n") == 1 + 2 * 3 * 2
