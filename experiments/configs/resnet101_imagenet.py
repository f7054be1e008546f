"""ResNet-101 on ImageNet, 90 epochs in batches of 1,024: 45 million parameters.

Command: python -m experiments.compare \
    --config=experiments/configs/resnet101_imagenet.py \
    --workdir=runs/resnet101_imagenet --config.data.path=<folder or tar of ImageNet>
Hardware: 8 GPUs or TPU cores with 24 GB or more each (an estimate).
Expected: not measured yet; published for momentum SGD: 77% to 78%. Every other learning
    rate is a start for a sweep.
"""

from experiments.common.types import Config
from experiments.configs import image_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = image_defaults.imagenet_config(epochs=90, warmup_epochs=5, batch_size=1024)
    config.target_devices = 8
    config.log_every = 100
    config.eval_every = 5_000
    config.report.model = "ResNet-101"
    config.model = image_defaults.model("resnet101", stem="imagenet", dtype="bfloat16")
    # Goyal et al. have 0.1 for each 256 images of a batch: 0.4, and 0.3 is on the grid.
    image_defaults.set_optimizers(
        config,
        l2=1e-4,
        momentum=0.3,
        adamw=1e-3,
        lambc=1e-2,
        larsc=10.0,
        acclip=1e-3,
        gclip=3.0,
        neumann=0.3,
    )
    image_defaults.reset_neumann(config, epochs=10, burn_in_epochs=5)
    return image_defaults.apply_variant(config, variant)
