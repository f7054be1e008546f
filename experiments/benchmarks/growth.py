"""What a long run and a sweep of rates add after their first step: nothing, one hopes.

    python -m experiments.benchmarks.growth \
        --output=experiments/results/bench_growth_cpu

makes 20,000 updates of each optimizer, at eight injected learning rates one after the
other, and counts the programs that are compiled and what memory has grown since a tenth
of them. Then the trainer sweeps eight rates. What was measured is used again by the
next call with the same flags, until the table is written.
"""

import functools
import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import optax_heavytail as oht
from experiments.benchmarks import common, trees
from experiments.common import fields, markdown, provenance
from experiments.common.measurements import Measurements
from experiments.configs import digits_zoo
from experiments.training import sweeps, trainer
from optax_heavytail import diagnostics

SHAPES: trees.Shapes = {"kernel": (64, 64), "bias": (64,)}  # large enough to compress
RATES = tuple(float(rate) for rate in np.geomspace(1e-4, 1e-2, 8).round(6))
COMPILED = "/jax/core/compile/backend_compile_duration"
GROWTH_HEADINGS = (
    "optimizer",
    "compiled",
    "after the first update",
    "arrays",
    "their bytes",
    "process, kB",
)
SWEEP_HEADINGS = ("eight rates", "compiled for the first", "for the seven others")
FIELDS = {"settings": fields.mapping(), "result": fields.mapping()}
Make = Callable[[Any], optax.GradientTransformation]

CONTESTANTS: dict[str, Make] = {
    "optax.adamw": optax.adamw,
    "oht.acclip": oht.acclip,
    "oht.acclip, normalize": functools.partial(oht.acclip, normalize=True),
    "oht.gclip": lambda rate: oht.gclip(rate, 1.0),
    "oht.cclip": lambda rate: oht.cclip(rate, 1e-2),
    "oht.lambc": oht.lambc,
    "oht.larsc": oht.larsc,
    "oht.neumann": oht.neumann,
    "oht.stable_adamw": oht.stable_adamw,
    "oht.spam": oht.spam,
    "oht.clip_by_history + adamw": lambda rate: optax.chain(
        oht.clip_by_history(), optax.adamw(rate)
    ),
    "oht.guarded(optax.adamw)": lambda rate: oht.guarded(optax.adamw(rate)),
    "oht.compress_state(optax.adamw)": lambda rate: oht.compress_state(
        optax.adamw(rate)
    ),
    "diagnostics.monitor(optax.adamw)": lambda rate: diagnostics.monitor(
        optax.adamw(rate)
    ),
}
ANEW = "`jax.jit` of `optax.adamw(rate)`, anew for each rate"
TRAINED = ("adamw", "acclip", "lambc")  # in `digits_zoo`
TRAINER_STEPS = 10


@functools.cache
def _compiled() -> list[str]:
    """The programs that this process compiles from now on, by name."""
    names: list[str] = []

    def note(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del duration_secs
        if event == COMPILED:
            names.append(str(kwargs.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(note)
    return names


def compilations(function: Callable[[], Any]) -> int:
    """How many programs a call compiles."""
    before = len(_compiled())
    jax.block_until_ready(function())
    return len(_compiled()) - before


def step_function(tx: optax.GradientTransformation) -> Callable[..., Any]:
    """A step towards ``target``, with parameters and state donated."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, target):
        grads = jax.tree.map(jnp.subtract, params, target)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class Run:
    """An optimizer whose rate is injected, and its parameters."""

    def __init__(self, make: Make):
        def with_rate(learning_rate):  # the only number that is injected
            return make(learning_rate)

        inject = optax.inject_hyperparams(with_rate, hyperparam_dtype=jnp.float32)
        tx = inject(RATES[0])
        self._step = step_function(tx)
        self._target = trees.filled(SHAPES, 1.0, seed=1)
        self._params = trees.filled(SHAPES, 1.0, seed=0)
        self._state: Any = jax.jit(tx.init)(self._params)

    def __call__(self, rate: float, updates: int) -> Any:
        """Makes updates at a rate."""
        injected = {"learning_rate": jax.device_put(np.float32(rate))}
        self._state = self._state._replace(hyperparams=injected)
        for _ in range(updates):
            self._params, self._state = self._step(
                self._params, self._state, self._target
            )
        return self._params


def used() -> dict[str, int]:
    """What is alive: arrays, their bytes, and kB of the process where Linux says."""
    gc.collect()
    arrays, status = jax.live_arrays(), Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    resident = [int(line.split()[1]) for line in lines if line.startswith("VmRSS:")]
    return {
        "arrays": len(arrays),
        "bytes": sum(x.nbytes for x in arrays),
        "resident_kb": resident[0] if resident else 0,
    }


def grow(name: str, updates: int) -> common.Record:
    """Compilations and growth over updates at all rates."""
    run, each = Run(CONTESTANTS[name]), updates // len(RATES)
    first = compilations(lambda: run(RATES[0], 1))
    settled = max(updates // 10, 1)
    later = compilations(lambda: run(RATES[0], settled - 1))
    before = used()
    rest = [updates - each * (len(RATES) - 1) - settled, *[each] * (len(RATES) - 1)]
    of_rates = [
        compilations(functools.partial(run, rate, number))
        for rate, number in zip(RATES, rest, strict=True)
    ]
    after = used()
    return {
        "kind": "growth",
        "contestant": name,
        "updates": updates,
        "first": first,
        "of_rates": [later + of_rates[0], *of_rates[1:]],
        **{key: after[key] - before[key] for key in before},
    }


def sweep_anew() -> common.Record:
    """A new program for each rate, as a rate that is a constant makes."""
    params = trees.filled(SHAPES, 1.0, seed=0)

    def one(rate: float) -> Any:
        tx = optax.adamw(rate)
        state = jax.jit(tx.init)(params)
        step = jax.jit(tx.update)
        return compilations(lambda: step(params, state, params))

    return {"kind": "sweep", "what": ANEW, "compiled": [one(rate) for rate in RATES]}


def sweep_trainer(name: str) -> common.Record:
    """The points of a sweep of the trainer."""
    config = digits_zoo.get_config()
    config.update(steps=TRAINER_STEPS, eval_every=TRAINER_STEPS)
    config.sweep.learning_rates = ConfigDict({name: RATES})
    jobs, programs = trainer.prepare(sweeps.grid_configs(config, name))
    with tempfile.TemporaryDirectory() as folder:
        compiled = [
            compilations(
                functools.partial(_train, job, Path(folder) / str(i), programs)
            )
            for i, job in enumerate(jobs)
        ]
    what = f"the trainer's sweep of `{name}`"
    return {"kind": "sweep", "what": what, "compiled": compiled}


def _train(job: Any, workdir: Path, programs: Any) -> None:
    trainer.run(job, workdir, programs)


def growth_row(record: common.Record) -> list[str]:
    """A row of the table of long runs."""
    later = sum(record["of_rates"])
    grown = (f"{record[key]:+,}" for key in ("arrays", "bytes", "resident_kb"))
    return [record["contestant"], str(record["first"]), str(later), *grown]


def sweep_row(record: common.Record) -> list[str]:
    """A row of the table of sweeps."""
    first, *others = record["compiled"]
    return [record["what"], str(first), str(sum(others))]


def measure(
    names: Sequence[str], trained: Sequence[str], updates: int, partial: Path
) -> list[common.Record]:
    """All records; those that ``partial`` has of this commit are not made again."""
    known = Measurements(
        partial,
        lambda record: str(record["settings"]),
        lambda record, where: fields.check(record, FIELDS, where),
    )
    made = [(name, functools.partial(grow, name, updates)) for name in names]
    made += [(ANEW, sweep_anew)]
    made += [
        (f"trainer {name}", functools.partial(sweep_trainer, name)) for name in trained
    ]
    records = []
    for what, take in made:
        settings = {"what": what, "updates": updates, "commit": provenance.commit()}
        if str(settings) not in known:
            known.add({"settings": settings, "result": take()})
            print(f"{what}: measured", flush=True)
        records.append(known[str(settings)]["result"])
    return records


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    parser = common.Parser(__doc__)
    parser.add_contestants(CONTESTANTS, f"Some of {', '.join(CONTESTANTS)}; all.")
    parser.add_argument(
        "--updates",
        type=common.positive,
        default=20_000,
        help="Of each optimizer (%(default)s).",
    )
    flags = parser.parse_args(argv)
    common.check_writable(flags.output)
    partial = flags.output.with_name(f"{flags.output.name}.partial.jsonl")
    records = measure(flags.contestants, TRAINED, flags.updates, partial)
    growths = [r for r in records if r["kind"] == "growth"]
    swept = [r for r in records if r["kind"] == "sweep"]
    explanation = (
        f"{flags.updates:,} updates of {trees.num_params(SHAPES):,} parameters at "
        f"{len(RATES)} injected rates, one after the other. Compiled are all programs "
        "of the process, those of the first update and later ones. Arrays, their bytes "
        "and the process's resident memory are what is there at the end beyond what "
        "was there after a tenth of the updates."
    )
    common.write(
        flags.output,
        "Long runs and sweeps",
        [
            explanation,
            markdown.table(GROWTH_HEADINGS, [growth_row(r) for r in growths]),
            f"Programs that a sweep compiles. The trainer's are {TRAINER_STEPS} steps "
            "of `experiments/configs/digits_zoo.py`, with evaluation and checkpoints.",
            markdown.table(SWEEP_HEADINGS, [sweep_row(r) for r in swept]),
        ],
        records,
    )
    partial.unlink(missing_ok=True)


if __name__ == "__main__":
    common.run(main)
