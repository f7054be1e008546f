r"""How the curvature of the loss changes while a model trains.

python -m experiments.follow --config=experiments/configs/bert_tiny.py \
    --workdir=runs/followed

It trains as `experiments.train` does, and on the way takes the spectrum of the Hessian
at some steps, and the smoothness along some updates. All of it is of the mean loss over
the same few batches, which the training does not come to. Writes ``curvature.jsonl``, a
line for each measurement, and ``curvature.png``. Given again after an interruption, it
trains again, and measures what is missing.
"""

from absl import flags

from experiments.common import cli, distributed, files
from experiments.configs import fields
from experiments.diagnosis import following, trajectory, trajectory_figures

SPECTRA = flags.DEFINE_integer(
    "spectra",
    6,
    "Steps whose spectrum is taken, the first and the last with them.",
    lower_bound=2,
    upper_bound=fields.MOST_STEPS,
)
POINTS = flags.DEFINE_integer(
    "points",
    80,
    "Updates whose smoothness is taken.",
    lower_bound=2,
    upper_bound=fields.MOST_STEPS,
)
LOSS_BATCHES = flags.DEFINE_integer(
    "loss_batches", 4, "Batches over which the loss is averaged.", lower_bound=1
)
LANCZOS_STEPS = flags.DEFINE_integer(
    "lanczos_steps", 64, "Hessian-vector products for a spectrum.", lower_bound=1
)


def main() -> None:
    """Measures as the flags say."""
    values = SPECTRA.value, POINTS.value, LOSS_BATCHES.value, LANCZOS_STEPS.value
    workdir = cli.workdir()
    picture = workdir / following.FIGURE_FILE
    files.check_target(picture)
    records = following.measure(cli.config(), workdir, following.Settings(*values))
    drawn = trajectory_figures.png(records, trajectory.fit(records))
    files.write_atomically(picture, drawn)
    distributed.say(f"{following.describe(records)}\n\npicture: {picture}")


if __name__ == "__main__":
    cli.run(main, fields.SECTIONS, resumes_with_changes=False)
