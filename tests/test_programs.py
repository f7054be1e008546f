"""What the trainer compiles, and how often."""

import jax
import jax.numpy as jnp
import optax

from experiments.training import program, trainer
from tests import toy_task


def test_one_program_serves_every_learning_rate():
    """A rate that is a constant of the program compiles anew for each value."""
    params = jnp.ones(3)

    def naive(rate):
        tx = optax.adamw(rate)
        return jax.jit(tx.update).lower(params, tx.init(params), params).as_text()

    def ours(rate):
        config = toy_task.config("acclip", steps=3)
        config.optimizers.acclip.learning_rate = rate
        resolved = trainer.resolve(config, toy_task.source())
        return program.build(resolved, toy_task.make()).train_step(1).as_text()

    # A compiled program names the line that asked for it: one line for both.
    for text_of, is_same in ((naive, False), (ours, True)):
        first, second = (text_of(rate) for rate in (0.1, 0.2))
        assert (first == second) == is_same
