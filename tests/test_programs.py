"""What the trainer compiles, and how often."""

import re

import jax
import jax.numpy as jnp
import optax

from experiments.training import programs
from experiments.training.job import Job
from tests import toy_task


def operations(text):
    """Those of a program, without the lines of code that asked for them."""
    lines = [line for line in text.splitlines() if " = " in line]
    return [re.sub(r", metadata=\{[^}]*\}", "", line) for line in lines]


def test_one_program_serves_every_learning_rate():
    """A rate that is a constant of the program compiles anew for each value."""
    params = jnp.ones(3)

    def naive(rate):
        tx = optax.adamw(rate)
        return jax.jit(tx.update).lower(params, tx.init(params), params).as_text()

    def ours(rate):
        config = toy_task.config("acclip", steps=3)
        config.optimizers.acclip.learning_rate = rate
        job = Job.of(config).on(toy_task.source())
        return programs.build(job, toy_task.make()).train_step(1).as_text()

    for text_of, is_same in ((naive, False), (ours, True)):
        first, second = (operations(text_of(rate)) for rate in (0.1, 0.2))
        assert (first == second) == is_same
        assert len(first) > 10
