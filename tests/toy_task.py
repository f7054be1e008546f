"""A task that compiles in no time: linear regression on endless random batches."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import tasks
from experiments.configs import bert_tiny

TRUTH = np.array([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0]], np.float32)


def config(optimizer="adamw", **changes):
    """The smoke config of bert_tiny, moved to this task."""
    changed = bert_tiny.get_config("smoke")
    changed.task = "toy"
    changed.optimizer.name = optimizer
    changed.num_devices = 1
    changed.update(changes)
    return changed


def batch(seed, poisoned=False):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 3), np.float32)
    scale = np.full(8, "nan" if poisoned else 1, np.float32)
    return {"x": x, "y": x @ TRUTH, "scale": scale}


def make(poisoned_step=None):
    """The task; the loss of step ``poisoned_step`` (from 1) is not a number."""

    def init(key):
        kernel = jax.random.normal(key, (3, 2))
        return {"dense": {"kernel": kernel, "bias": jnp.zeros(2)}}, {}

    def squares(params, batch):
        dense = params["dense"]
        return (batch["x"] @ dense["kernel"] + dense["bias"][None] - batch["y"]) ** 2

    def weight(batch):
        return jnp.float32(batch["y"].size)

    def loss_sum(params, model_state, batch, key):
        error = squares(params, batch)
        kept = jax.random.bernoulli(key, 0.9, error.shape)
        return jnp.sum(batch["scale"][:, None] * error * kept), model_state

    def eval_sums(params, model_state, batch):
        error = squares(params, batch)
        return {
            "weight": jnp.float32(error.size),
            "loss": jnp.sum(error),
            "accuracy": jnp.sum(error < 0.1).astype(jnp.float32),
        }

    def train_batches(start_step):
        step = start_step
        while True:
            yield batch(step, poisoned=step + 1 == poisoned_step)
            step += 1

    return tasks.Task(
        init=init,
        weight=weight,
        loss_sum=loss_sum,
        eval_sums=eval_sums,
        train_batches=train_batches,
        eval_batches=lambda: [batch(10**6), batch(10**6 + 1)],
        baselines={"token frequencies": 5.0},
        description={"source": "toy", "sha256": "0" * 64},
        save_assets=lambda folder: None,
    )


def source(poisoned_step=None):
    return tasks.Source("0" * 64, lambda workdir: make(poisoned_step))
