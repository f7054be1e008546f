"""Runs one law on one transform, and says how it went."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import optax

from optax_heavytail.testing import _compare, _inputs
from optax_heavytail.testing._compare import Broken

_SHRINKING = 60  # tries after the first failure; most of what there is to gain

# A law compiles while it draws, and may be checked inside of another search.
_ALL_CHECKS: tuple[Any, ...] = tuple(hypothesis.HealthCheck)

PASSED, BROKEN, SKIPPED = "passed", "broken", "skipped"


class Skipped(Exception):  # noqa: N818 - an outcome of a law, not an error of the kit
    """A law could not be checked; the text says what it lacks."""


class Outcome(NamedTuple):
    """What one law said of a transform."""

    law: str  #: the law's name, that of its function without ``check_``
    status: str  #: "passed", "broken" or "skipped"
    detail: str  #: what was broken and the smallest input found, or what was missing
    error: BaseException | None = None  #: what the transform itself raised, if it did


class Report(NamedTuple):
    """What each law said of a transform. ``print`` shows it as a table."""

    outcomes: tuple[Outcome, ...]  #: one per law, in the order of the check

    def __str__(self) -> str:
        """The table: law, status, and why where it is not "passed"."""
        width = max((len(outcome.law) for outcome in self.outcomes), default=0)
        rows = (f"{o.law:{width}}  {o.status:7}  {o.detail}" for o in self.outcomes)
        return "\n".join(row.rstrip().replace("\n ", ";") for row in rows)

    def with_status(self, status: str) -> tuple[Outcome, ...]:
        """The outcomes that are "passed", "broken" or "skipped"."""
        return tuple(o for o in self.outcomes if o.status == status)


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
    max_examples: int = 10

    def __post_init__(self):
        if not (hasattr(self.tx, "init") and hasattr(self.tx, "update")):
            raise TypeError(f"tx needs init and update; {self.tx!r} has not both")
        if self.kwargs is not None and self.factory is None:
            raise ValueError("kwargs is given without factory, which would take them")
        if self.max_examples < 1:
            raise ValueError(f"max_examples is {self.max_examples}; it must be >= 1")
        if not 0 <= self.rtol < math.inf:
            raise ValueError(f"rtol is {self.rtol}; it must be in [0, inf)")
        params = _inputs.default_params() if self.params is None else self.params
        _inputs.check_floating(params)
        # With an explicit dtype, for a Python number's type is weak.
        strong = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), params)
        object.__setattr__(self, "params", strong)

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

    @functools.cached_property
    def jitted(self) -> Callable[..., tuple[Any, Any]]:
        """The update under ``jit``, compiled once for all laws."""
        return jax.jit(self.bind(self.tx))

    def history(self, grads: list[Any], params: Any) -> list[tuple[Any, Any]]:
        """Updates and state of each step under ``jit``."""
        return steps(self.jitted, grads, self.tx.init(params), params)

    def search(
        self,
        holds: Callable[[list[Any]], None],
        params: Any,
        at_most: int = 3,
        *,
        at_least: int = 1,
        values: tuple[float, ...] = _inputs.ORDINARY,
        change: Callable[[list[Any]], list[Any]] = list,
    ) -> None:
        """Calls ``holds`` with gradients; breaks with the smallest that it refuses."""
        found: list[tuple[Any, list[Any], Exception, Any]] = []
        tries_left = _SHRINKING

        @hypothesis.settings(
            max_examples=self.max_examples,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            derandomize=True,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=_ALL_CHECKS,
        )
        @hypothesis.given(
            _inputs.drawing(params, at_least, at_most, len(values)),
        )
        def attempt(drawn):
            nonlocal tries_left
            tries_left -= bool(found)
            grads = change(_inputs.gradients(params, drawn, at_most, values))
            try:
                holds(grads)
            except Exception as error:
                used = drawn.used(at_most)
                size = (sum(map(bool, used)), drawn.steps, sum(used))
                # Before hypothesis adds its own frames to the traceback.
                found.append((size, grads, error, error.__traceback__))
                if size == (0, at_least, 0):
                    raise _EnoughError from error
                raise
            finally:
                if not tries_left:
                    raise _EnoughError

        try:
            attempt()
        except (Exception, _EnoughError):
            if not found:  # hypothesis itself failed
                raise
            _, grads, error, traceback = min(found, key=lambda entry: entry[0])
            inputs = f"smallest input found: {_inputs.describe(grads)}"
            cause = error.with_traceback(traceback)
            raise Broken(f"{explain(error)}\n  {inputs}") from cause


class _EnoughError(BaseException):
    """Ends a search; hypothesis lets it pass, as it is no Exception."""


def steps(update: Callable[..., Any], grads: list[Any], state: Any, params: Any):
    """Updates and state of each step, from ``state`` on. The parameters stay."""
    history = []
    for g in grads:
        updates, state = update(g, state, params)
        history.append((updates, state))
    return history


def close(got: Any, want: Any, tolerance: _compare.Tolerance, what: str) -> None:
    """Breaks unless two histories agree."""
    close_updates(got, want, tolerance, f"{what}, update")
    _compare.close(
        [s for _, s in got], [s for _, s in want], tolerance, f"{what}, state"
    )


def close_updates(
    got: Any, want: Any, tolerance: _compare.Tolerance, what: str
) -> None:
    """Breaks unless the updates of two histories agree."""
    _compare.close([u for u, _ in got], [u for u, _ in want], tolerance, what)


def explain(error: Exception) -> str:
    """The first paragraph of an error; JAX explains itself at length after it."""
    if isinstance(error, Broken):
        return str(error)
    text = " ".join(str(error).strip().split("\n\n")[0].split())
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # another one in every run
    text = text if len(text) <= 300 else text[:300] + " ..."
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


def _raised(error: BaseException | None) -> BaseException | None:
    """What the transform raised, if that is what broke the law."""
    while isinstance(error, Broken):
        error = error.__cause__
    return error


def judge(name: str, body: Callable[[Trial], None], trial: Trial) -> Outcome:
    """The outcome of one law."""
    try:
        body(trial)
    except Skipped as why:
        return Outcome(name, SKIPPED, str(why))
    except Exception as error:
        return Outcome(name, BROKEN, explain(error), _raised(error))
    return Outcome(name, PASSED, "")


def raise_if_broken(report: Report) -> None:
    """One AssertionError that names every broken law, from the first error raised."""
    broken = report.with_status(BROKEN)
    if broken:
        blocks = [f"law {o.law!r} is broken: {o.detail}" for o in broken]
        cause = next((o.error for o in broken if o.error is not None), None)
        raise AssertionError("\n".join(blocks)) from cause


BODIES: dict[str, Callable[[Trial], None]] = {}  # filled by `law`


def law(body: Callable[[Trial], None]) -> Callable[..., Outcome]:
    """The public function of a law: it takes a transform in place of a `Trial`."""
    name = body.__name__.removeprefix("check_")
    BODIES[name] = body

    def check(
        tx: Any,
        params: Any = None,
        *,
        factory: Callable[..., Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        static_args: str | Iterable[str] = (),
        extra_args: Mapping[str, Any] | None = None,
        rtol: float = 1e-4,
        max_examples: int = 10,
    ) -> Outcome:
        trial = Trial(
            tx,
            params,
            factory,
            kwargs,
            static_args,
            extra_args or {},
            rtol,
            max_examples,
        )
        outcome = judge(name, body, trial)
        raise_if_broken(Report((outcome,)))
        return outcome

    check.__name__ = check.__qualname__ = body.__name__
    check.__doc__ = body.__doc__
    check.__module__ = body.__module__
    return check
