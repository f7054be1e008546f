"""W10 of the suite: its parts, its last statistics, and what its tables say."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.errors import UserError
from experiments.data import images
from experiments.models import resnet
from experiments.studies import cifar, training
from experiments.studies.heavy_tails import large_batches, methods, suite
from experiments.studies.training import LOST, Contestant, Point, Problem


def split(number, blue):
    """Images that have their own number in red and green, and the split in blue."""
    pixels = np.empty((number, 2, 2, 3), np.uint8)
    for i in range(number):
        pixels[i] = i // 256, i % 256, blue
    labels = np.arange(number) % 10
    return images.Split(labels.astype(np.int32), pixels.__getitem__, None)


def source(*_):
    return images.Images(split(700, 0), split(300, 255), 10, 3, 255, True, "", "")


def numbers(part):
    red, green = part["images"][:, 0, 0, :2].astype(int).T
    return 256 * red + green


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar, "read", source)
    monkeypatch.setattr(large_batches, "PARTS", {"train": 400, "validation": 200})
    monkeypatch.setattr(large_batches, "TEST", 100)
    large_batches.images.cache_clear()
    yield
    large_batches.images.cache_clear()


def test_parts_share_no_image(small):
    parts = large_batches.images(Path())
    train, validation = (numbers(parts[name]) for name in ("train", "validation"))
    assert len(np.unique(np.concatenate([train, validation]))) == 600
    assert len(np.unique(numbers(parts["test"]))) == 100
    for name, part in parts.items():
        assert np.all(part["images"][..., 2] == (255 if name == "test" else 0))
        np.testing.assert_array_equal(part["labels"], numbers(part) % 10)
    # In another order than that of the classes.
    assert len(np.unique(parts["train"]["labels"][:20])) > 5


def of_means(stem):
    """A network whose normalisation has one statistic: the mean of the green."""
    del stem

    def loss_sum(params, state, batch, key):
        green = batch["images"][..., 1].astype(jnp.float32).mean()
        decay = resnet.NORM_MOMENTUM
        after = {"mean": decay * state["mean"] + (1 - decay) * green}
        return params * len(batch["labels"]), after

    def eval_sums(params, state, batch):
        number = len(batch["labels"])
        return {"loss": number * state["mean"], "accuracy": 0.0, "weight": number}

    def init(key):
        return jax.random.normal(key), {"mean": jnp.ones(())}

    return {"init": init, "loss_sum": loss_sum, "eval_sums": eval_sums}


def test_the_last_statistics_are_of_all_training_images(small, monkeypatch):
    monkeypatch.setattr(cifar, "network", of_means)
    made = large_batches.problem(Path(), 100, "clean", "test")
    assert made.steps == large_batches.EPOCHS * 4
    assert made.batches(0).shape == (made.steps, 100)
    want = large_batches.images(Path())["train"]["images"][..., 1].mean()
    for mean in (0.0, 1e3):
        found, _ = made.evaluate(jnp.zeros(()), {"mean": jnp.array(mean)}, made.data)
        assert found == pytest.approx(want, rel=1e-5)
    # What has been trained on is not what is tested.
    test = large_batches.images(Path())["test"]["images"][..., 1].mean()
    assert test != pytest.approx(want, rel=1e-2)


def test_lanes_in_turn_take_trees_of_their_own():
    """As those side by side do: what is drawn before is a lane's own start."""

    def problem(side_by_side):
        return Problem(
            2,
            lambda given: given,
            lambda params, state, data, batch: (params * batch + state, state),
            lambda params, state, data: (params + 10 * state, params),
            np.zeros(1),
            lambda seed: np.ones(2, np.float32),
            lambda seed: (jnp.float32(seed), jnp.float32(seed % 2)),
            side_by_side=side_by_side,
        )

    constant = optax.constant_schedule(1.0)
    contestant = Contestant(optax.sgd, 1.0, schedule=lambda _: constant)
    curves = [
        training.runner(contestant, problem(way))([Point(0.5, None)], (3, 4, 5))
        for way in (False, True)
    ]
    # Two steps of 0.5 down a slope of one.
    assert curves[0].losses[0].tolist() == [[12.5, 12.0], [3.5, 3.0], [14.5, 14.0]]
    np.testing.assert_array_equal(curves[0].losses, curves[1].losses)


def test_races_are_of_equal_epochs_and_grids():
    races = [large_batches.of_size(size, Path()) for size in large_batches.RATES]
    assert [made.steps for made in races] == [1536, 192, 98, 32, 24]
    for made in races:
        assert made.contestants.keys() >= {made.baseline, made.endpoint.method}
        assert len(made.contestants) >= 3
        # A threshold would have a grid of two rates.
        assert all(each.threshold is None for each in made.contestants.values())
        assert len(made.protocol.fresh_seeds) == 5
        assert not set(made.protocol.tuning_seeds) & set(made.protocol.fresh_seeds)


@pytest.mark.parametrize("name", large_batches.contestants(1000))
def test_contestants_are_optimizers(name):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    tx = large_batches.contestants(1000)[name].make(0.1)
    updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all(np.all(leaf < 0) for leaf in jax.tree.leaves(updates))


def test_images_that_are_not_there_are_said(tmp_path):
    """No cell needs them before it is measured, and then one line names the flag."""
    cells = suite.WORKLOADS["batches"].cells(tmp_path)
    assert {cell.settings["workload"] for cell in cells} == {
        "W10",
        *(f"W10 batch {size}" for size in large_batches.RATES),
    }
    for cell in (cells[0], cells[-1]):
        with pytest.raises(UserError, match="; --data names") as said:
            cell.measure()
        assert str(tmp_path / cifar.TAR) in str(said.value)


def record(size, name, losses, accuracies):
    made = large_batches.of_size(size, Path())
    settings = {"workload": made.name, "condition": "clean", "optimizer": name}
    track = {"losses": losses, "accuracies": accuracies, "rate": 0.1}
    track |= {"threshold": None, "is_inside": True, "moves": 0}
    return {"settings": settings, "result": {"tuned": track}}


def toy_records():
    """The losses of a method are its place among the others, and more of each size."""
    return [
        record(size, name, [i + at, i + at + 0.5], [0.25 * i, 0.25 * i + 0.01])
        for at, size in enumerate(large_batches.RATES)
        for i, name in enumerate(large_batches.contestants(size))
    ]


def test_claims_are_pairs_of_methods_and_of_sizes():
    made = large_batches.tables(toy_records())
    claims = made["w10_claims"].splitlines()
    # Equal differences have no interval.
    against = f"neumann against {large_batches.MOMENTUM}"
    first = f"| 64 | {against} | +1.0000 (no interval) | +25.00 (no interval) |"
    assert claims[2] == first
    assert claims[4].startswith("| 1,000 | lambc against lamb | +1.0000 ")
    assert len(claims) == 2 + len(large_batches.RATES)
    sizes = made["w10_sizes"].splitlines()
    assert sizes[0].split(" | ")[1:] == [
        "512 minus 64 images of a step",
        "4,096 minus 64 images of a step |",
    ]
    assert [row.split(" | ")[0] for row in sizes[2:]] == [
        f"| {name}" for name in (methods.BASELINE, large_batches.MOMENTUM, "neumann")
    ]
    assert all(row.count("+1.0000") == row.count("+4.0000") == 1 for row in sizes[2:])


def test_a_lost_run_is_in_no_mean_of_the_figure():
    records = toy_records()
    before = large_batches.picture(records)
    records[0]["result"]["tuned"]["losses"][1] = LOST
    after = large_batches.picture(records)
    assert before[:4] == after[:4] == b"\x89PNG"
    assert "1 of 2 lost" in large_batches.tables(records)["w10_sizes"]
