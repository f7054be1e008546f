r"""Says whether the gradient noise of a model is heavy-tailed, and where to clip.

python -m experiments.diagnose --config=experiments/configs/bert_tiny.py \
    --config.optimizer.name=adamw --checkpoint=runs/adamw --workdir=runs/diagnosis
"""

from absl import flags

from experiments.common import cli, distributed
from experiments.configs import fields
from experiments.diagnosis import noise

CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A run's folder, or one of its checkpoints/<step>; without it the model is new.",
)
STEPS = flags.DEFINE_list(
    "steps", [], "Steps of the run's checkpoints, 0 for the new model; or all."
)
BATCHES = flags.DEFINE_integer(
    "batches", 512, "How many gradients the noise is measured from.", lower_bound=2
)
CURVATURE = flags.DEFINE_bool(
    "curvature",
    True,
    "Also the smoothness along some steps of the run, and the Hessian's spectrum, for "
    "which the memory must hold 50 times the parameters.",
)


def main() -> None:
    """Diagnoses as the flags say."""
    distributed.say(
        noise.diagnose(
            cli.config(),
            cli.workdir(),
            CHECKPOINT.value,
            STEPS.value,
            BATCHES.value,
            CURVATURE.value,
        )
    )


if __name__ == "__main__":
    cli.run(main, fields.SECTIONS, resumes_with_changes=False)
