"""What the trainer compiles, and how often."""

import re

import jax
import jax.numpy as jnp
import optax

from experiments.training import parallel, programs
from experiments.training.job import Job
from tests import compilation, toy_task


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


def test_programs_of_a_run_use_no_library_of_kernels_on_a_cpu():
    """Which makes steps of small models longer; where XLA has it, it is the default."""
    lowered = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x))).lower(jnp.ones((64, 64)))
    options = parallel.compiler_options()
    as_users_do = compilation.as_users_do()
    assert "__ynn_fusion" in lowered.compile(as_users_do).as_text()
    assert "__ynn_fusion" not in lowered.compile(as_users_do | options).as_text()


def test_an_xla_without_that_library_has_no_such_option(monkeypatch):
    class WithoutIt:
        def lower(self):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")

    parallel.compiler_options.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "jit", lambda *_, **__: WithoutIt())
        assert parallel.compiler_options() == {}
    parallel.compiler_options.cache_clear()
