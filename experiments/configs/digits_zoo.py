"""Every optimizer of the package, and rivals from Optax, on the 8x8 digits.

Command: python -m experiments.compare --config=experiments/configs/digits_zoo.py \
    --workdir=runs/digits_zoo
Hardware: 2 CPU cores, all optimizers in less than 2 minutes.
Expected: every optimizer beyond 90% accuracy; figures in experiments/README.md.
"""

from experiments.configs import defaults, variants
from experiments.types import Config

# Transform, its peak learning rate, and what else is not its default. The rates are the
# best of experiments/results/digits_zoo_sweep.md, which tries each and its neighbours.
OPTIMIZERS = {
    "acclip": (3e-2, {"normalize": True, "eps": 1e-8}),
    "acclip_literal": (3.0, {}),
    "adabelief": (0.1, {}),
    "adamw": (0.1, {}),
    "adamw_decoupled": (3e-2, {}),
    "adashift": (1e-2, {"eps": 1e-3}),
    "addsign": (0.3, {}),
    "amsgrad": (1e-2, {}),
    "cclip": (1.0, {"threshold": 0.01}),
    "clip_by_moment": (1.0, {"scope": "global"}),
    "clipped_gd": (30.0, {"max_update_norm": 1.0}),
    "gclip": (1.0, {"threshold": 1.0}),
    "iterate_average": (0.1, {}),
    "lamb": (1e-2, {}),
    "lambc": (3e-2, {}),
    "lars": (10.0, {}),
    "larsc": (10.0, {}),
    "momentum": (0.1, {}),
    "neumann": (0.3, {}),
    "neumann_two_loop": (0.3, {"num_inner_steps": 5}),
    "normalized_gd": (0.3, {"momentum": 0.9}),
    "novograd": (0.1, {}),
    "powersign": (0.3, {}),
    "sgdw": (0.3, {}),
}
# Entries whose name is not their transform's.
TRANSFORMS = {
    "acclip_literal": "acclip",
    "iterate_average": "weighted_iterate_average",
}
RATES = tuple(float(f"{digit}e{power}") for power in range(-5, 4) for digit in (1, 3))


def neighbours(rate: float) -> tuple[float, ...]:
    """Five learning rates around ``rate``, a factor of about 3 apart."""
    index = RATES.index(rate)
    return RATES[index - 2 : index + 3]


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps."""
    variants.check(variant)
    config = defaults.run_config()
    config.task = "digits"
    config.steps = 300
    config.batch_size = 64
    config.log_every = 10
    config.eval_every = 20
    config.report = {
        "model": "Perceptron",
        "loss_unit": "nats per image",
        "loss_scale": "log",
        "accuracy_name": "accuracy",
    }
    config.data = {"split_seed": 0, "sha256": ""}
    config.model = {"num_layers": 2, "width": 64}
    config.optimizer = {"name": "acclip"}
    config.optimizers = {
        name: {
            "transform": TRANSFORMS.get(name, name),
            "learning_rate": rate,
            "kwargs": kwargs,
        }
        for name, (rate, kwargs) in OPTIMIZERS.items()
    }
    config.compare = {"optimizers": tuple(OPTIMIZERS)}
    config.sweep = {
        "learning_rates": {
            name: neighbours(rate) for name, (rate, _) in OPTIMIZERS.items()
        }
    }
    if variant == "smoke":
        config.steps = 2
        config.log_every = config.eval_every = 1
    return config
