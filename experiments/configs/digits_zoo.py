"""Every optimizer of the package, and rivals from Optax, on the 8x8 digits.

Command: python -m experiments.compare --config=experiments/configs/digits_zoo.py \
    --workdir=runs/digits_zoo
Hardware: 2 CPU cores, all optimizers in less than 2 minutes.
Expected: every optimizer beyond 90% accuracy; figures in experiments/README.md.
"""

from ml_collections import ConfigDict

from experiments.common.types import Config
from experiments.configs import image_defaults

# Transform, its peak learning rate, and what else is not its default. The rates are the
# best of experiments/results/digits_zoo_sweep.md, and of digits_zoo_later_sweep.md and
# digits_zoo_rule_sweep.md beside it, which try each and its neighbours.
OPTIMIZERS = {
    "acclip": (3e-2, {"normalize": True, "eps": 1e-8}),
    "acclip_literal": (3.0, {}),
    "adabelief": (0.1, {}),
    "adagc": (3e-2, {}),
    "adam_atan2": (3e-2, {}),
    "adamw": (0.1, {}),
    "adamw_decoupled": (3e-2, {}),
    "adashift": (1e-2, {"eps": 1e-3}),
    "addsign": (0.3, {}),
    "amsgrad": (1e-2, {"bias_correction": False}),
    "biclip": (1.0, {"lower": 1e-3, "upper": 0.03}),
    "cautious_adamw": (0.1, {}),
    "cclip": (1.0, {"threshold": 0.01}),
    "clip_by_moment": (1.0, {"scope": "global"}),
    "clipped_gd": (30.0, {"max_update_norm": 1.0}),
    "fast_adabelief": (3e-2, {}),
    "gclip": (1.0, {"threshold": 1.0}),
    "guarded_adamw": (0.1, {}),
    "history_adamw": (0.1, {}),
    "iterate_average": (0.1, {}),
    "lamb": (1e-2, {}),
    "lambc": (3e-2, {}),
    "lars": (10.0, {}),
    "larsc": (10.0, {}),
    "momentum": (0.1, {}),
    "neumann": (0.3, {}),
    "neumann_two_loop": (0.3, {"num_inner_steps": 5}),
    "normalized_gd": (0.3, {"b1": 0.9}),
    "novograd": (0.1, {}),
    "powersign": (0.3, {}),
    "rule": (1e-2, {"expression": "adam * exp(sign(g) * sign(m))"}),
    "sgdw": (0.3, {}),
    "spam": (3e-2, {}),
    "stable_adamw": (3e-2, {}),
    "stable_spam": (3e-2, {}),
}
# Entries whose name is not their transform's.
TRANSFORMS = {
    "acclip_literal": "acclip",
    "iterate_average": "weighted_iterate_average",
}


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps."""
    config = image_defaults.image_config()
    config.steps = 300
    config.batch_size = 64
    config.log_every = 10
    config.eval_every = 20
    config.report.model = "Perceptron"
    config.model = ConfigDict({"name": "perceptron", "num_layers": 2, "width": 64})
    config.optimizer = ConfigDict({"name": "acclip"})
    config.optimizers = ConfigDict(
        {
            name: {
                "transform": TRANSFORMS.get(name, name),
                "learning_rate": rate,
                "kwargs": kwargs,
            }
            for name, (rate, kwargs) in OPTIMIZERS.items()
        }
    )
    config.compare = ConfigDict({"optimizers": tuple(OPTIMIZERS)})
    grids = {
        name: image_defaults.neighbours(rate) for name, (rate, _) in OPTIMIZERS.items()
    }
    config.sweep = ConfigDict({"learning_rates": grids})
    return image_defaults.apply_variant(config, variant)
