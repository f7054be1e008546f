"""W8: a character LSTM with batches of 4, and a small GPT with 8 rows.

The text is CPython's language reference, as in the other studies of language. Nothing
is corrupted: a control, in which guards have nothing to win.
"""

import functools
import pydoc_data.topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.losses import cross_entropy
from experiments.studies.heavy_tails import methods, race
from experiments.studies.heavy_tails.noise import Look
from experiments.studies.heavy_tails.race import Endpoint, Race
from experiments.studies.training import Problem, PyTree

LENGTH, WIDTH, CHARACTERS = 32, 32, 64  # the last character stands for all rare ones
MARGIN = 0.01  # nats a character
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}  # of the text, in its order
ROWS = 128  # of an evaluation


METHODS = (
    "adamw",
    "adamw, b2=0.99",
    methods.BASELINE,
    "clip_by_global_norm(tuned), adamw",
    "clip_by_global_norm(tuned), momentum",
    "clip_by_history, adamw",
    "guarded(adamw)",
)
FURTHER = ("adagc", "stable_adamw", "acclip, normalize")


class Setup(NamedTuple):
    """A network, what a step takes, and what is run."""

    steps: int
    rows: int
    rate: float
    methods: tuple[str, ...]


SETUPS = {
    "LSTM": Setup(300, 4, 0.016, METHODS + FURTHER),
    "GPT": Setup(300, 8, 0.008, METHODS),
}


@functools.cache
def text() -> dict[str, np.ndarray]:
    """The characters of each part, by how common they are."""
    topics = pydoc_data.topics.topics
    whole = np.array(list("\n".join(topics[name] for name in sorted(topics))))
    kinds, places, counts = np.unique(whole, return_inverse=True, return_counts=True)
    rank = np.empty(len(kinds), np.int32)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(kinds))
    codes = np.minimum(rank, CHARACTERS - 1)[places]
    stops = np.cumsum([int(share * len(codes)) for share in SHARES.values()])
    pieces = np.split(codes, stops)
    return dict(zip(SHARES, pieces[: len(SHARES)], strict=True))


def problem(network: str, condition: str, part: str) -> Problem:
    """Next characters of random rows; evaluated on rows of a part."""
    del condition  # nothing is corrupted
    setup, parts = SETUPS[network], text()
    spread = np.linspace(0, len(parts[part]) - LENGTH - 1, ROWS).astype(int)
    held_out = parts[part][spread[:, None] + np.arange(LENGTH + 1)]

    def batches(seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 1])
        last = len(parts["train"]) - LENGTH - 1
        starts = rng.integers(last, size=(setup.steps, setup.rows, 1))
        return parts["train"][starts + np.arange(LENGTH + 1)]

    init, logits = NETWORKS[network]

    def of_rows(params: PyTree, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = logits(params, rows[:, :-1])
        is_right = jnp.argmax(found, axis=-1) == rows[:, 1:]
        return cross_entropy(found, rows[:, 1:]).mean(), jnp.mean(is_right)

    def loss(params: PyTree, state: PyTree, data: PyTree, batch: PyTree) -> Any:
        del data
        return of_rows(params, batch)[0], state

    def evaluate(params: PyTree, state: PyTree, data: PyTree) -> Any:
        del state
        return of_rows(params, data)

    return Problem(
        setup.steps,
        lambda key: (init(key), {}),
        loss,
        evaluate,
        held_out,
        batches,
        evaluations=1,
        side_by_side=True,
    )


def _dense(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape) / shape[0] ** 0.5


def _lstm_init(key: jax.Array) -> PyTree:
    keys = jax.random.split(key, 3)
    return {
        "embedding": jax.random.normal(keys[0], (CHARACTERS, WIDTH)),
        "cell": _dense(keys[1], 2 * WIDTH, 4 * WIDTH),
        # The gate that forgets starts open.
        "bias": jnp.zeros(4 * WIDTH).at[:WIDTH].set(1.0),
        "out": _dense(keys[2], WIDTH, CHARACTERS),
        "out_bias": jnp.zeros(CHARACTERS),
    }


def _lstm(params: PyTree, rows: jax.Array) -> jax.Array:
    """(rows, length) characters to logits of the next ones."""
    inputs = params["embedding"][rows].swapaxes(0, 1)

    def step(carry: Any, x: jax.Array) -> Any:
        hidden, memory = carry
        both = jnp.concatenate([x, hidden], axis=-1)
        gates = jnp.split(both @ params["cell"] + params["bias"], 4, axis=-1)
        forget, enter, leave = map(jax.nn.sigmoid, gates[:3])
        memory = forget * memory + enter * jnp.tanh(gates[3])
        hidden = leave * jnp.tanh(memory)
        return (hidden, memory), hidden

    start = jnp.zeros((len(rows), WIDTH))
    hidden = jax.lax.scan(step, (start, start), inputs)[1].swapaxes(0, 1)
    return hidden @ params["out"] + params["out_bias"]


def _gpt_init(key: jax.Array) -> PyTree:
    keys = jax.random.split(key, 7)
    return {
        "embedding": 0.3 * jax.random.normal(keys[0], (CHARACTERS, WIDTH)),
        "position": 0.3 * jax.random.normal(keys[1], (LENGTH, WIDTH)),
        "qkv": _dense(keys[2], WIDTH, 3 * WIDTH),
        "mix": _dense(keys[3], WIDTH, WIDTH),
        "up": _dense(keys[4], WIDTH, 4 * WIDTH),
        "down": _dense(keys[5], 4 * WIDTH, WIDTH),
        "out": _dense(keys[6], WIDTH, CHARACTERS),
        "scales": jnp.ones((3, WIDTH)),
    }


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return scale * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _gpt(params: PyTree, rows: jax.Array) -> jax.Array:
    """One block of two heads."""
    x = params["embedding"][rows] + params["position"]
    heads = 2
    q, k, v = (
        piece.reshape(len(rows), LENGTH, heads, WIDTH // heads)
        for piece in jnp.split(
            _normed(x, params["scales"][0]) @ params["qkv"], 3, axis=-1
        )
    )
    logits = jnp.einsum("rihd,rjhd->rhij", q, k) / (WIDTH // heads) ** 0.5
    seen = jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), logits, -1e9)
    mixed = jnp.einsum("rhij,rjhd->rihd", jax.nn.softmax(seen), v)
    x += mixed.reshape(x.shape) @ params["mix"]
    hidden = jax.nn.gelu(_normed(x, params["scales"][1]) @ params["up"])
    x += hidden @ params["down"]
    return _normed(x, params["scales"][2]) @ params["out"]


NETWORKS = {"LSTM": (_lstm_init, _lstm), "GPT": (_gpt_init, _gpt)}
RACES = {
    network: Race(
        f"W8 {network}",
        functools.partial(problem, network),
        setup.steps,
        (race.CLEAN,),
        methods.contestants(setup.rate, setup.methods),
        Endpoint("guarded(adamw)", race.CLEAN, "tuned"),
        MARGIN,
    )
    for network, setup in SETUPS.items()
}


LOOKS = {
    network: {
        "trained": Look(
            functools.partial(problem, network, race.CLEAN, "test"),
            setup.rate,
            setup.steps // 2,
        )
    }
    for network, setup in SETUPS.items()
}
