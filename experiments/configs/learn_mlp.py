"""A network of 170 weights trained to optimize small networks, by evolution.

Command: python -m experiments.learn \
    --config=experiments/configs/learn_mlp.py --workdir=runs/learn_mlp
Hardware: 2 CPU cores.
Expected: docs/evidence/learned.md says what the weights that come with the package do.
"""

from ml_collections import ConfigDict

from experiments.common.fields import LARGEST_SEED, Field, choice, integer, number
from experiments.common.types import Config
from experiments.configs import variants

VARIANTS = ("full", "short", "smoke")
FIELDS: dict[str, Field] = {
    "model": choice("mlp"),
    "seed": integer(0, LARGEST_SEED),
    "estimator": choice("nres", "pes", "truncated"),
    "outer_steps": integer(1, 10**7),
    "workers": integer(1, 1000),
    "quadratics": integer(1, 1000),
    "window": integer(1, 10**4),
    "longest": integer(1, 10**5),
    "sigma": number(0, above=True),
    "rate": number(0, above=True),
    "evaluations": integer(1, 1000),
    "test_tasks": integer(1, 1000),
    "test_steps": integer(1, 10**5),
    "checkpoint_every": integer(1),
}


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``short`` is the whole of it with few windows."""
    variants.check_among(variant, VARIANTS)
    config = ConfigDict()
    config.model = "mlp"
    config.seed = 0
    config.estimator = "nres"
    config.outer_steps = 30_000  # windows of each worker
    config.workers = 6  # on networks
    config.quadratics = 2  # workers on quadratics
    config.window = 20  # steps of a training from one change of the weights to the next
    config.longest = 2000  # steps of a training
    config.sigma = 0.03  # of the perturbations of the weights
    config.rate = 1e-3  # of Adam on the weights, with a cosine to 0
    config.evaluations = 20  # of which the best weights are kept
    config.test_tasks = 16  # fresh trainings of each family
    config.test_steps = 300
    config.checkpoint_every = 100
    if variant == "short":
        config.outer_steps, config.evaluations, config.longest = 150, 5, 400
        config.test_steps = 150
    if variant == "smoke":
        config.outer_steps, config.workers, config.quadratics = 2, 1, 1
        config.window, config.longest, config.evaluations = 2, 4, 2
        config.test_tasks, config.test_steps, config.checkpoint_every = 2, 4, 1
    return config
