"""The conformance kit on every optimizer of Optax, as tables for the documentation.

    python -m experiments.conformance [word ...]

writes the tables between the two marks of docs/conformance.md, in about ten minutes on
two cores. With words it only prints the reports of the optimizers whose names
contain one of them.
"""

import os
import sys

# Before jax is imported: the law of sharding needs two devices.
os.environ["XLA_FLAGS"] = os.environ.get(
    "XLA_FLAGS", "--xla_force_host_platform_device_count=2"
)

import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common import files, markdown
from experiments.common.errors import UserError
from optax_heavytail import testing

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "conformance.md"
MARKS = {"passed": "·", "broken": "**✗**", "skipped": "-"}

_STEP = {"learning_rate": 0.1}
_VALUE = {"value": jnp.asarray(2.0, jnp.float32)}


class Subject(NamedTuple):
    """An optimizer with what its factory and its update need."""

    factory: Callable[..., Any]
    kwargs: dict[str, Any] = _STEP
    extra_args: dict[str, Any] = {}  # noqa: RUF012 - read only
    static_args: tuple[str, ...] = ()
    params: Any = None  # in place of the kit's own


def _squared_norm(params):
    """Smooth, with a derivative at 0."""
    return optax.tree.norm(params, squared=True)


_KERNEL = jnp.linspace(-1.0, 2.0, 8, dtype=jnp.float32).reshape(4, 2)
_NO_SCALAR = {"bias": jnp.asarray([0.5, -2.0], jnp.bfloat16), "kernel": _KERNEL}
_FLOAT32 = {
    "bias": jnp.asarray([0.5, -2.0], jnp.float32),
    "kernel": _KERNEL,
    "scale": jnp.asarray(1.5, jnp.float32),
}

_PLAIN = (
    "adabelief adadelta adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb "
    "lars lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent "
    "radam rmsprop rprop sgd sign_sgd signum yogi"
)
_CONTRIB = (
    "acprop ademamix cocob dadapt_adamw dog dowg madgrad prodigy "
    "schedule_free_sgd simplified_ademamix"
)

# All optimizers of optax and optax.contrib but dpsgd, whose gradients have one more
# dimension than its parameters. Names that stand for a size or a dtype are static.
# What differs from the defaults, other than a learning rate, stands after a comma.
SUBJECTS = {
    **{name: Subject(getattr(optax, name)) for name in _PLAIN.split()},
    "sgd, momentum": Subject(optax.sgd, _STEP | {"momentum": 0.9}),
    "sm3, no scalar": Subject(optax.sm3, params=_NO_SCALAR),
    "adafactor": Subject(
        optax.adafactor,
        static_args=("min_dim_size_to_factor", "dtype_momentum"),
    ),
    "lbfgs, no linesearch": Subject(
        optax.lbfgs, _STEP | {"linesearch": None}, static_args=("memory_size",)
    ),
    "noisy_sgd": Subject(optax.noisy_sgd, _STEP | {"key": 0}, static_args=("key",)),
    "polyak_sgd": Subject(optax.polyak_sgd, {}, _VALUE),
    **{
        f"contrib.{name}": Subject(getattr(optax.contrib, name))
        for name in _CONTRIB.split()
    },
    "contrib.adopt": Subject(optax.contrib.adopt, static_args=("clip_value_fn",)),
    "contrib.galore": Subject(
        optax.contrib.galore,
        static_args=("rank", "update_proj_gap"),
    ),
    "contrib.mechanize, float32": Subject(
        optax.contrib.mechanize,
        {"base_optimizer": optax.sgd(0.1)},
        static_args=("num_betas",),
        params=_FLOAT32,
    ),
    "contrib.momo": Subject(optax.contrib.momo, {}, _VALUE),
    "contrib.momo_adam": Subject(optax.contrib.momo_adam, {}, _VALUE),
    "contrib.muon": Subject(optax.contrib.muon, static_args=("ns_steps",)),
    "contrib.reduce_on_plateau": Subject(
        optax.contrib.reduce_on_plateau,
        {},
        _VALUE,
        static_args=("patience", "cooldown", "accumulation_size"),
    ),
    "contrib.sam": Subject(
        optax.contrib.sam,
        {"optimizer": optax.sgd(0.1), "adv_optimizer": optax.sgd(0.05)},
        static_args=("sync_period",),
    ),
    "contrib.schedule_free_adamw": Subject(
        optax.contrib.schedule_free_adamw, static_args=("warmup_steps",)
    ),
    "contrib.sophia, float32": Subject(
        optax.contrib.sophia, extra_args={"obj_fn": _squared_norm}, params=_FLOAT32
    ),
}


def examine(subject: Subject) -> testing.Report:
    """All laws on one optimizer."""
    return testing.examine(
        subject.factory(**subject.kwargs),
        subject.params,
        factory=subject.factory,
        kwargs=subject.kwargs,
        static_args=subject.static_args,
        extra_args=subject.extra_args,
        laws=testing.DEFAULT_LAWS + testing.OPTIONAL_LAWS,
    )


def tables(reports: dict[str, testing.Report]) -> str:
    """The two tables, and what is broken among the default laws, in words."""
    parts = [
        _table("default laws", testing.DEFAULT_LAWS, reports),
        _table("laws for some", testing.OPTIONAL_LAWS, reports),
        "What was broken among the default laws:\n",
        *(_failures(name, report) for name, report in reports.items()),
    ]
    return "\n".join(part for part in parts if part)


def _table(title, laws, reports):
    rows = []
    for name, report in reports.items():
        status = {o.law: MARKS[o.status] for o in report.outcomes}
        rows.append([f"`{name}`", *(status[law] for law in laws)])
    headings = [title, *(law.replace("_", " ") for law in laws)]
    return markdown.table(headings, rows, rule=":-:") + "\n"


def _failures(name, report):
    broken = [o for o in report.outcomes if o.status == "broken"]
    broken = [o for o in broken if o.law in testing.DEFAULT_LAWS]
    lines = [f"  - {o.law}: `{_first_sentence(o.detail)}`" for o in broken]
    return "\n".join([f"- `{name}`", *lines]) if lines else ""


def _first_sentence(detail):
    # What JAX says after it names files of this machine.
    return detail.splitlines()[0].split(". ")[0]


def write(text: str) -> None:
    """Replaces what is between the marks of the page."""
    versions = f"Optax {optax.__version__}, JAX {jax.__version__}, on a CPU."
    page = PAGE.read_text(encoding="utf-8")
    filled = markdown.fill(page, {"tables": f"{versions}\n\n{text}"})
    files.write_atomically(PAGE, filled)


def main(words: list[str]) -> None:
    """Prints the chosen reports, or writes them all."""
    chosen = [n for n in SUBJECTS if not words or any(word in n for word in words)]
    if not chosen:
        raise UserError(f"no optimizer is called {words}; there are {list(SUBJECTS)}")
    reports = {}
    for name in chosen:
        reports[name] = examine(SUBJECTS[name])
        jax.clear_caches()  # a thousand compiled steps would fill the memory
        print(f"{name}\n{reports[name]}\n", flush=True)
    if not words:
        write(tables(reports))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
