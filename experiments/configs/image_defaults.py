"""What the configs of image classification share."""

from ml_collections import ConfigDict

from experiments.common.types import Config
from experiments.configs import defaults, variants
from experiments.models import resnet

RATES = tuple(float(f"{digit}e{power}") for power in range(-5, 4) for digit in (1, 3))
IMAGENET_IMAGES = 1_281_167
IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def neighbours(rate: float) -> tuple[float, ...]:
    """Five learning rates around ``rate``, a factor of about 3 apart."""
    index = RATES.index(rate)
    return RATES[index - 2 : index + 3]


def image_config() -> Config:
    """Everything but lengths, model and optimizers; the data are the digits."""
    config = defaults.run_config()
    config.task = "images"
    config.report = ConfigDict(
        {
            "model": "",
            "loss_unit": "nats per image",
            "loss_scale": "log",
            "accuracy_name": "accuracy",
        }
    )
    config.label_smoothing = 0.0

    config.data = ConfigDict()
    config.data.path = ""  # a folder or tar of class folders; empty: the 8x8 digits
    config.data.sha256 = ""  # refuse any other images; empty: accept and record them
    config.data.split_seed = 0  # which digits are held out
    config.data.image_size = 8
    config.data.augment = "none"  # or "shift" or "resized_crop"
    config.data.flip = False  # half of the training images, left to right
    config.data.mean = (0.0,)  # of pixels from 0 to 1, for all channels or for each
    config.data.std = (1.0,)
    return config


def model(size: str, **others) -> Config:
    """Sizes of `He et al.` by name; ``others`` are the stem, and what differs."""
    config = {"name": "resnet", **resnet.SIZES[size], "width": 64, "dtype": "float32"}
    return ConfigDict({**config, **others})


def optimizer_entries(l2: float) -> dict[str, dict]:
    """Entries without their learning rates.

    Args:
      l2: strength of the weight decay as published for momentum SGD, where it is part
        of the gradient. There a momentum of 0.9 counts it ten times; here it is
        decoupled, and counts once.
    """
    return {
        "momentum": {
            "transform": "momentum",
            "weight_decay": 10 * l2,
            "kwargs": {"decay": 0.9},
        },
        "adamw": {
            "transform": "adamw",
            "weight_decay": 0.05,
            "kwargs": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        },
        "lambc": {
            "transform": "lambc",
            "weight_decay": 0.01,
            "kwargs": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
        },
        "larsc": {
            "transform": "larsc",
            "weight_decay": l2,
            "kwargs": {"momentum": 0.9, "trust_coefficient": 1e-3},
        },
        "acclip": {
            "transform": "acclip",
            "weight_decay": 0.05,
            "kwargs": {"b1": 0.9, "b2": 0.99, "eps": 1e-8, "normalize": True},
        },
        "gclip": {
            "transform": "gclip",
            "weight_decay": l2,
            "kwargs": {"threshold": 1.0, "b1": 0.9},
        },
        "neumann": {"transform": "neumann", "kwargs": {}},
    }


def set_optimizers(config: Config, l2: float, **rates: float) -> None:
    """Sets the optimizers by name, with peak learning rates and grids around them."""
    entries = optimizer_entries(l2)
    config.optimizer = ConfigDict({"name": "momentum"})
    config.optimizers = ConfigDict(
        {name: {**entries[name], "learning_rate": rate} for name, rate in rates.items()}
    )
    config.compare = ConfigDict({"optimizers": tuple(rates)})
    grids = {name: neighbours(rate) for name, rate in rates.items()}
    config.sweep = ConfigDict({"learning_rates": grids})


def imagenet_config(epochs: int, warmup_epochs: int, batch_size: int) -> Config:
    """ImageNet at 224x224 for some epochs of 1,281,167 images."""
    config = image_config()
    config.batch_size = batch_size
    config.steps = epochs * IMAGENET_IMAGES // batch_size
    config.warmup_fraction = warmup_epochs / epochs
    config.label_smoothing = 0.1
    config.data.update(
        image_size=224, augment="resized_crop", flip=True, **IMAGENET_PIXELS
    )
    return config


def reset_neumann(config: Config, epochs: int, burn_in_epochs: int) -> None:
    """Restarts Neumann's memory as its authors do, in epochs of ImageNet."""
    config.optimizers.neumann.kwargs = ConfigDict(
        {
            "burn_in_steps": burn_in_epochs * IMAGENET_IMAGES // config.batch_size,
            "reset_interval": epochs * IMAGENET_IMAGES // config.batch_size,
        }
    )


def apply_variant(config: Config, variant: str) -> Config:
    """Leaves ``full`` as it is; ``smoke`` becomes 2 steps at the smallest sizes.

    Raises:
      UserError: no such variant.
    """
    variants.check(variant)
    if variant == "smoke":
        variants.shorten(config, rows=16)
        config.data.update(image_size=8, mean=(0.5,), std=(0.5,))
        if config.data.augment != "none":
            config.data.augment = "shift"
        if config.model.name == "resnet":
            config.model.update(width=4, stages=(1, 1))
    return config
