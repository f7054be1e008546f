"""A transform with the inputs on which it is judged, and what is computed once."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_heavytail.testing import _compare, _inputs, _search
from optax_heavytail.testing._compare import Broken

_EAGER_STEPS = 3
# Outside of jit a loop or a `cond` compiles at every call.
_EAGER_EXAMPLES = 3


class Step(NamedTuple):
    """One call of ``update`` outside of ``jit``."""

    grads: Any
    before: Any  # the state passed in
    updates: Any
    after: Any  # the state that came out
    left_arguments: bool  # whether what was passed in is what it was


@dataclasses.dataclass(frozen=True)
class Trial:
    """A transform with the inputs on which it is judged."""

    tx: Any
    params: Any = None
    factory: Callable[..., Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    static_args: str | Iterable[str] = ()
    extra_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rtol: float = 1e-4
    max_examples: int | None = None
    given: Any = dataclasses.field(init=False)  # ``tx`` with its variant of chex

    def __post_init__(self):
        if not (hasattr(self.tx, "init") and hasattr(self.tx, "update")):
            raise TypeError(f"tx needs init and update; {_name(self.tx)} has not both")
        object.__setattr__(self, "given", self.tx)
        object.__setattr__(self, "tx", _without_variant(self.tx))
        if self.kwargs is not None and self.factory is None:
            raise ValueError("kwargs is given without factory, which would take them")
        if self.num_examples < 1:
            raise ValueError(f"max_examples is {self.max_examples}; it must be >= 1")
        if not 0 <= self.rtol < math.inf:
            raise ValueError(f"rtol is {self.rtol}; it must be in [0, inf)")
        params = _inputs.default_params() if self.params is None else self.params
        _inputs.check_floating(params)
        # With an explicit dtype, for a Python number's type is weak.
        strong = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), params)
        object.__setattr__(self, "params", strong)

    @functools.cached_property
    def num_examples(self) -> int:
        """How many inputs are tried for one law."""
        given = self.max_examples
        return _search.default_examples() if given is None else given

    @functools.cached_property
    def wide(self) -> Any:
        """The parameters in float32 or wider."""
        return _inputs.widen(self.params)

    @functools.cached_property
    def tolerance(self) -> _compare.Tolerance:
        """An update that is a difference of parameters has their rounding errors.

        A state in a narrow dtype has its own, whatever the parameters' dtype.
        """
        stored = filter(_compare.is_float, jax.tree.leaves(self.tx.init(self.wide)))
        narrowest = max(
            (float(jnp.finfo(jnp.result_type(x)).eps) for x in stored), default=0.0
        )
        narrow = narrowest > jnp.finfo(jnp.float32).eps
        return _compare.Tolerance(
            max(self.rtol, 2 * narrowest) if narrow else self.rtol,
            max(
                2
                * float(jnp.finfo(x.dtype).eps)
                * float(jnp.max(jnp.abs(x), initial=0))
                for x in jax.tree.leaves(self.wide)
            ),
        )

    def update(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """One step, with the extra arguments that the transform was said to need."""
        return self.bind(self.tx)(grads, state, params)

    def bind(self, tx: Any) -> Callable[..., tuple[Any, Any]]:
        """The update of a transform made of ``tx``, with the extra arguments."""
        if not self.extra_args:
            return tx.update
        update = optax.with_extra_args_support(tx).update
        return functools.partial(update, **self.extra_args)

    def again(self) -> Any:
        """The transform made anew; ``None`` without a factory."""
        return self.factory and self.factory(**(self.kwargs or {}))

    @functools.cached_property
    def jitted(self) -> Callable[..., tuple[Any, Any]]:
        """The update under ``jit``, compiled once for all laws."""
        return jax.jit(self.bind(self.tx))

    @functools.cached_property
    def fixed(self) -> list[Any]:
        """Gradients of three steps, the same in every run."""
        return _inputs.fixed_gradients(self.params, _EAGER_STEPS)

    @functools.cached_property
    def eager(self) -> list[Step]:
        """Steps outside of ``jit``, taken once for all laws."""
        state, taken = self.tx.init(self.params), []
        for grads in self.fixed:
            # New containers: whoever changes them changes nothing of ours.
            arguments = jax.tree.map(lambda x: x, (grads, state, self.params))
            before = jax.tree.flatten(arguments)
            updates, after = _pair(self.update(*arguments))
            leaves, structure = jax.tree.flatten(arguments)
            left = structure == before[1] and all(
                a is b for a, b in zip(before[0], leaves, strict=True)
            )
            taken.append(Step(grads, state, updates, after, left))
            state = after
        return taken

    def history(self, grads: list[Any], params: Any) -> list[tuple[Any, Any]]:
        """Updates and state of each step under ``jit``."""
        return steps(self.jitted, grads, self.tx.init(params), params)

    def search(
        self,
        holds: Callable[[list[Any]], None],
        params: Any,
        at_most: int = 6,
        *,
        at_least: int = 1,
        values: tuple[float, ...] = _inputs.ORDINARY,
        change: Callable[[list[Any]], list[Any]] = list,
        is_eager: bool = False,
    ) -> None:
        """Calls ``holds`` with gradients; breaks with the smallest that it refuses."""
        search = _search.Search(holds, params, at_least, at_most, values, change)
        examples = self.num_examples
        search.run(min(examples, _EAGER_EXAMPLES) if is_eager else examples)


def steps(update: Callable[..., Any], grads: list[Any], state: Any, params: Any):
    """Updates and state of each step, from ``state`` on. The parameters stay."""
    history = []
    for g in grads:
        updates, state = update(g, state, params)
        history.append((updates, state))
    return history


def assert_runs(trial: Trial) -> None:
    """Breaks unless ``init`` and updates go through and look like Optax's."""
    _assert_takes_three(trial.tx.update)
    first = trial.eager[0]
    if trial.given is not trial.tx:
        arguments = (first.grads, first.before, trial.params)
        trial.given.update(*arguments, **trial.extra_args)


def _name(tx: Any) -> str:
    fields = getattr(tx, "_fields", None)
    return f"{type(tx).__name__}({', '.join(fields)})" if fields else repr(tx)


def _pair(out: Any) -> tuple[Any, Any]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise Broken(
            "its API is not Optax's: update returned a "
            f"{type(out).__name__} and not (updates, state)"
        )
    return out


def _assert_takes_three(update: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(update)
    except ValueError:  # there is none to be had
        return
    try:
        signature.bind_partial(1, 2, 3)
    except TypeError as error:
        raise Broken(
            f"its API is not Optax's: update takes ({', '.join(signature.parameters)}) "
            "and not (updates, state, params)"
        ) from error


def _without_variant(tx: Any) -> Any:
    """The transform behind a variant of chex, some of which cannot be traced.

    The laws call it with and without ``jit``, on devices and off them, themselves.
    """
    module = getattr(tx.update, "__globals__", {}).get("__name__", "")
    if not module.startswith("chex.") or not hasattr(tx.update, "__wrapped__"):
        return tx
    takes_more = isinstance(tx, optax.GradientTransformationExtraArgs)
    kind = (
        optax.GradientTransformationExtraArgs
        if takes_more
        else optax.GradientTransformation
    )
    return kind(tx.init, inspect.unwrap(tx.update))
