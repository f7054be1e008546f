"""The LSTM of 2016 trained on quadratics, against tuned optimizers.

Command: python -m experiments.learn \
    --config=experiments/configs/learn_lstm.py --workdir=runs/learn_lstm
Hardware: 2 CPU cores.
Expected: docs/evidence/learned.md has the losses of five seeds.
"""

from ml_collections import ConfigDict

from experiments.common.fields import LARGEST_SEED, Field, choice, integer, number
from experiments.common.types import Config
from experiments.configs import variants

VARIANTS = ("full", "short", "smoke")
FIELDS: dict[str, Field] = {
    "model": choice("lstm"),
    "family": choice("quadratics", "digits_sigmoid", "digits_relu"),
    "seed": integer(0, LARGEST_SEED),
    "functions": integer(1, 10**6),
    "batch": integer(1, 10**4),
    "steps": integer(1, 10**5),
    "window": integer(1, 10**5),
    "rate": number(0, above=True),
    "evaluations": integer(1, 1000),
    "test_functions": integer(1, 10**4),
    "checkpoint_every": integer(1),
    "rates": integer(3, 101),
}


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``short`` is the whole of it with few functions."""
    variants.check_among(variant, VARIANTS)
    config = ConfigDict()
    config.model = "lstm"
    config.family = "quadratics"
    config.seed = 0
    config.functions = 400  # batches of functions, each for all windows
    config.batch = 32  # functions of a batch
    config.steps = 100  # of the optimizer on a function
    config.window = 20  # steps that are differentiated together
    config.rate = 5e-3  # of Adam on the weights, with a cosine to 0
    config.evaluations = 10  # of which the best weights are kept
    config.test_functions = 128
    config.checkpoint_every = 20  # batches
    config.rates = 25  # of each rival, odd
    if variant == "short":
        config.functions = 60
    if variant == "smoke":
        config.functions, config.batch, config.steps, config.window = 2, 2, 4, 2
        config.evaluations, config.test_functions, config.rates = 2, 3, 3
        config.checkpoint_every = 1
    return config
