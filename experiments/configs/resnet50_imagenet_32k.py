"""ResNet-50 on ImageNet, 90 epochs in batches of 32,768, which are 3,518 steps.

Command: python -m experiments.compare \
    --config=experiments/configs/resnet50_imagenet_32k.py \
    --workdir=runs/resnet50_32k --config.data.path=<folder or tar of ImageNet>
Hardware: 32 GPUs or TPU cores with 16 GB or more each (an estimate); fewer with a
    larger config.accumulate.
Expected: not measured yet; published: about 76% with LAMB or LARS. Every learning rate
    is a start for a sweep.
"""

from experiments.common.types import Config
from experiments.configs import image_defaults


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = image_defaults.imagenet_config(
        epochs=90, warmup_epochs=20, batch_size=32_768
    )
    # Batch statistics are those of a microbatch of 4,096.
    config.accumulate = 8
    config.target_devices = 32
    config.log_every = 10
    config.eval_every = 200
    config.report.model = "ResNet-50"
    config.model = image_defaults.model("resnet50", stem="imagenet", dtype="bfloat16")
    # You et al. have 0.04 for LAMB; 0.03 is on the grid.
    image_defaults.set_optimizers(
        config,
        l2=1e-4,
        momentum=3.0,
        adamw=1e-2,
        lambc=3e-2,
        larsc=30.0,
        acclip=1e-2,
        gclip=30.0,
        neumann=3.0,
    )
    image_defaults.reset_neumann(config, epochs=10, burn_in_epochs=5)
    return image_defaults.apply_variant(config, variant)
