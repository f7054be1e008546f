"""Rules that do the same, by what they do."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_heavytail.rules._compile import transform
from optax_heavytail.rules._expression import Rule
from optax_heavytail.rules._program import interpret
from optax_heavytail.rules._vocabulary import BELLO, Vocabulary

_UPDATES, _ENTRIES = 4, 32
_DIGITS = 4
_CHUNK = 64  # programs at a time


def fingerprint(
    rule: str | Rule,
    *,
    up_to_scale: bool = True,
    vocabulary: Vocabulary = BELLO,
    operands: Mapping[str, optax.GradientTransformation] | None = None,
) -> str | None:
    """A word that rules with the same behaviour share.

    The rule makes 4 updates of 32 fixed heavy-tailed gradients, in float64; their first
    4 digits are hashed. Words that differ belong to rules that differ. Rules that share
    one may still differ elsewhere, such as beyond a clip that none of these gradients
    reaches.

    Args:
      rule: its text, or a tree of `parse`.
      up_to_scale: whether a rule and the same times a positive number share a word: the
        learning rate makes them one.
      vocabulary: `BELLO` or `EXTENDED`.
      operands: see `transform`.

    Returns:
      16 hexadecimal digits, or ``None`` for a rule whose updates are not all finite, or
      all zero: no rule to train with.

    Raises:
      RuleError: the text is no rule of the vocabulary.

    Example:
      >>> import optax_heavytail as oht
      >>> oht.rules.fingerprint("g + g") == oht.rules.fingerprint("g")
      True
      >>> oht.rules.fingerprint("-g") == oht.rules.fingerprint("g")
      False
    """
    params, gradients = inputs()
    with jax.enable_x64(True):
        tx = transform(rule, total_steps=8, vocabulary=vocabulary, operands=operands)
        weights = jnp.asarray(params)
        state, made = tx.init(weights), []
        for grads in gradients:
            updates, state = tx.update(jnp.asarray(grads), state, weights)
            made.append(np.asarray(updates))
    return digest(np.stack(made), up_to_scale=up_to_scale)


def fingerprints(programs: Any) -> list[str | None]:
    """The word of each rule that is an array, in one compiled program for all.

    Args:
      programs: (n, slots, 5), integers, each as `encode` makes them.

    Returns:
      For each what `fingerprint` says of its rule, up to a positive factor.

    Example:
      >>> import numpy as np
      >>> import optax_heavytail as oht
      >>> programs = [oht.rules.encode(text, slots=1) for text in ("g + m", "g - g")]
      >>> oht.rules.fingerprints(np.stack(programs)) == [
      ...     oht.rules.fingerprint("m + g"), None]
      True
    """
    made = []
    with jax.enable_x64(True):
        for start in range(0, len(programs), _CHUNK):
            part = np.asarray(programs[start : start + _CHUNK])
            full = np.concatenate([part, np.repeat(part[-1:], _CHUNK - len(part), 0)])
            made.append(np.asarray(_updates_of(jnp.asarray(full)))[: len(part)])
    return [digest(updates, up_to_scale=True) for part in made for updates in part]


@jax.jit
def _updates_of(programs):
    params, gradients = map(jnp.asarray, inputs())

    def run(program):
        tx = interpret(program)

        def step(state, grads):
            updates, state = tx.update(grads, state, params)
            return state, updates

        return jax.lax.scan(step, tx.init(params), gradients)[1]

    return jax.lax.map(run, programs)


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Parameters, and gradients of some updates, in float64."""
    rng = np.random.default_rng(17)
    scales = 10.0 ** np.linspace(-3, 0, _ENTRIES)
    gradients = scales * rng.standard_t(3, size=(_UPDATES, _ENTRIES))
    return rng.normal(size=_ENTRIES), gradients


def digest(updates: np.ndarray, *, up_to_scale: bool) -> str | None:
    """The hash of what a rule made; ``None`` where it is no update."""
    if not np.all(np.isfinite(updates)) or not np.any(updates):
        return None
    largest = np.max(np.abs(updates))
    scaled = updates / largest  # whose squares neither over- nor underflow
    size = np.sqrt(np.mean(scaled**2))
    unit = scaled / size if up_to_scale else updates
    # What cancels leaves noise of rounding, which is nobody's behaviour.
    noise = 1e-9 * (1.0 if up_to_scale else size * largest)
    unit = np.where(np.abs(unit) < noise, 0.0, unit)
    words = " ".join(f"{x:.{_DIGITS - 1}e}" for x in unit.ravel())
    return hashlib.sha1(words.encode()).hexdigest()[:16]
