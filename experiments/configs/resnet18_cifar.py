"""ResNet-18 with a stem for small images, on CIFAR-10: 11 million parameters.

Command: python -m experiments.compare --config=experiments/configs/resnet18_cifar.py \
    --workdir=runs/resnet18_cifar --config.data.path=<folder or tar of CIFAR-10>
Hardware: one GPU or TPU core with 8 GB or more (an estimate).
Expected: not measured yet; published: about 95% after 200 epochs, of which these are
    40. Every learning rate but momentum's, the published one, is a start for a sweep.
"""

from experiments.common.types import Config
from experiments.configs import image_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = image_defaults.image_config()
    config.steps = 15_600
    config.batch_size = 128
    config.log_every = 100
    config.eval_every = 1_560
    config.report.model = "ResNet-18"
    config.data.update(
        image_size=32,
        augment="shift",
        flip=True,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )
    config.model = image_defaults.model("resnet18", stem="cifar")
    image_defaults.set_optimizers(
        config,
        l2=5e-4,
        momentum=0.1,
        adamw=1e-3,
        lambc=1e-2,
        larsc=10.0,
        acclip=1e-3,
        gclip=1.0,
        neumann=0.1,
    )
    return image_defaults.apply_variant(config, variant)
