"""What the masked-language-model configs share."""

from ml_collections import ConfigDict

from experiments.common.types import Config
from experiments.configs import defaults, variants
from experiments.models import bert

# A step shrinks weights by learning_rate x weight_decay: the optimizers whose updates
# are as large as gradients have rates 1,000 times higher, and 1,000 times less decay.
OPTIMIZERS = {
    "acclip": {
        "transform": "acclip",
        "weight_decay": 1e-2,
        "kwargs": {"b1": 0.9, "b2": 0.99, "alpha": 1, "eps": 1e-8, "normalize": True},
    },
    "acclip_literal": {
        "transform": "acclip",
        "weight_decay": 1e-5,
        "kwargs": {"b1": 0.9, "b2": 0.99, "alpha": 1, "eps": 1e-5, "normalize": False},
    },
    "adamw": {
        "transform": "adamw",
        "weight_decay": 1e-2,
        "kwargs": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    },
    "momentum": {
        "transform": "momentum",
        "weight_decay": 1e-5,
        "kwargs": {"decay": 0.9},
    },
    "gclip": {
        "transform": "gclip",
        "weight_decay": 1e-5,
        "kwargs": {"threshold": 1.0, "b1": 0.9},
    },
}

# Matrices are cut along their inputs. The last kernel of the attention has them along
# two axes, and no row of the vocabulary's 30,522 divides: these along their outputs.
FSDP_RULES = (
    ("attention/out/kernel$", (None, None, "fsdp")),
    ("embedding$", (None, "fsdp")),
    ("kernel$", ("fsdp",)),
)


def mlm_config() -> Config:
    """Everything but sizes, lengths and learning rates."""
    config = defaults.run_config()
    config.task = "mlm"

    config.report = ConfigDict(
        {
            "model": "BERT",
            "loss_unit": "nats per masked token",
            "loss_scale": "linear",
            "accuracy_name": "masked accuracy",
        }
    )

    config.data = ConfigDict()
    config.data.path = ""  # a UTF-8 file or folder; empty: pydoc_data.topics
    config.data.separator = ""  # a line between the documents of one file; empty: blank
    config.data.sha256 = ""  # refuse any other text; empty: accept and record it
    config.data.split_seed = 0  # which documents are held out, and their masks

    config.optimizer = ConfigDict({"name": "acclip"})
    config.optimizers = ConfigDict(OPTIMIZERS)
    config.compare = ConfigDict({"optimizers": tuple(OPTIMIZERS)})
    config.sweep = ConfigDict({"learning_rates": {}})
    return config


def model(size: str, **others) -> Config:
    """Sizes of `Devlin et al.` by name, with their dropout and initialisation."""
    return ConfigDict(
        {
            **bert.SIZES[size],
            "dropout": 0.1,
            "init_stddev": 0.02,
            "dtype": "float32",
            **others,
        }
    )


def set_grids(config: Config, **grids: tuple[float, ...]) -> None:
    """Sets the learning rates to sweep, by optimizer."""
    config.sweep.learning_rates = ConfigDict(grids)


def set_learning_rates(config: Config, **rates: float) -> None:
    """Sets the peak learning rate of every optimizer."""
    for name, rate in rates.items():
        config.optimizers[name].learning_rate = rate


def apply_variant(config: Config, variant: str, *others: str) -> Config:
    """Leaves ``full`` as it is; ``smoke`` becomes 2 steps at the smallest sizes.

    ``others`` are variants that the config makes itself.

    Raises:
      UserError: no such variant.
    """
    variants.check(variant, *others)
    if variant == "smoke":
        variants.shorten(config, rows=8)
        config.data.vocab_size = 256
        config.data.sequence_length = 32
        config.model.update(bert.SIZES["tiny"], dropout=0.1)
    return config
