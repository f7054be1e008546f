import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_heavytail as oht
from experiments import tasks
from experiments.configs import bert_tiny


def bert_losses(tx, source, workdir, num_steps, seeds):
    """Mean training loss of the last 20 steps, for each seed of the initialisation."""
    task = source.build(workdir)
    batches = task.train_batches(0)
    stacked = [next(batches) for _ in range(num_steps)]

    @jax.jit
    def step(params, state, batch, key):
        def mean_loss(params):
            return task.loss_sum(params, {}, batch, key)[0] / task.weight(batch)

        loss, grads = jax.value_and_grad(mean_loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    means = []
    for seed in seeds:
        key = jax.random.key(seed)
        params, _ = task.init(key)
        state = tx.init(params)
        losses = []
        for batch in stacked:
            params, state, loss = step(params, state, batch, key)
            losses.append(loss)
        means.append(float(jnp.mean(jnp.stack(losses[-20:]))))
    return np.array(means)


@pytest.mark.nightly
def test_a_short_bert_run_is_within_the_spread_of_seeds(tmp_path):
    config = bert_tiny.get_config("smoke")
    config.batch_size = 16
    source = tasks.load(config)

    def run(dtype):
        tx = oht.acclip(
            4e-3, normalize=True, eps=1e-8, mu_dtype=dtype, threshold_dtype=dtype
        )
        return bert_losses(tx, source, tmp_path, 120, range(3))

    wide, narrow = run(None), run(jnp.bfloat16)
    assert np.ptp(wide) > 0
    assert abs(narrow.mean() - wide.mean()) < np.ptp(wide)
    assert wide.mean() < 5.2  # it has learnt something: the uniform loss is 5.5
