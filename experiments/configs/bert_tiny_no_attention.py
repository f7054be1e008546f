"""`bert_tiny` with the attention removed from its encoder layers.

Each masked token is then predicted from its place alone: what is left is the heavy tail
that text and depth make without attention. Meant for a diagnosis, not for a comparison.

Command: python -m experiments.diagnose \
    --config=experiments/configs/bert_tiny_no_attention.py \
    --workdir=runs/bert_tiny_no_attention
Hardware: 2 CPU cores, less than 5 minutes.
Expected: experiments/results/diagnosis.md.
"""

from experiments.common.types import Config
from experiments.configs import bert_tiny


def get_config(variant: str = "full") -> Config:
    """Returns the config; ``smoke`` runs 2 steps at the smallest sizes."""
    config = bert_tiny.get_config(variant)
    config.model.attention = False
    return config
