"""`bert_tiny` that sees Gaussian noise in place of its tokens' embeddings.

Nothing about the text enters but the targets: what is left is the heavy tail that the
network itself makes. Meant for a diagnosis, not for a comparison.

Command: python -m experiments.diagnose \
    --config=experiments/configs/bert_tiny_gaussian_inputs.py \
    --workdir=runs/bert_tiny_gaussian_inputs
Hardware: 2 CPU cores, less than 5 minutes.
Expected: experiments/results/diagnosis.md.
"""

from experiments.common.types import Config
from experiments.configs import bert_tiny


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = bert_tiny.get_config(variant)
    config.model.inputs = "gaussian"
    return config
