"""A small residual network on scikit-learn's 8x8 digits.

Command: python -m experiments.compare --config=experiments/configs/resnet_digits.py \
    --workdir=runs/resnet_digits
Hardware: 2 CPU cores, all five optimizers in less than 4 minutes.
Expected: every optimizer beyond 98% accuracy; figures in experiments/README.md.
"""

from experiments.common.types import Config
from experiments.configs import image_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps."""
    config = image_defaults.image_config()
    config.steps = 300
    config.batch_size = 64
    config.log_every = 10
    config.eval_every = 50
    config.report.model = "Small ResNet"
    config.label_smoothing = 0.1
    config.data.update(augment="shift", mean=(0.305,), std=(0.376,))
    config.model = image_defaults.model(
        "resnet18", stem="cifar", stages=(1, 1, 1), width=16
    )
    # The best of each grid: experiments/results/resnet_digits_sweep.md.
    image_defaults.set_optimizers(
        config,
        l2=5e-4,
        momentum=1.0,
        adamw=3e-2,
        lambc=0.1,
        acclip=0.1,
        neumann=1.0,
    )
    return image_defaults.apply_variant(config, variant)
