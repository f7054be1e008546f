"""Runs one law on one transform, and says how it went."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from optax_heavytail.testing import _compare
from optax_heavytail.testing._compare import Broken, explain
from optax_heavytail.testing._trial import Trial

PASSED, BROKEN, SKIPPED = "passed", "broken", "skipped"

# Of the 65,530 that a process on Linux has; a compiled program holds some of them.
_MOST_MAPS = 20_000
_MAPS = pathlib.Path("/proc/self/maps")
_HERE = str(pathlib.Path(__file__).parent)


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


def judge(name: str, body: Callable[[Trial], None], trial: Trial) -> Outcome:
    """The outcome of one law."""
    try:
        body(trial)
    except Skipped as why:
        return Outcome(name, SKIPPED, str(why))
    except Exception as error:
        return Outcome(name, BROKEN, explain(error), _raised(error))
    finally:
        _bound_memory()
    return Outcome(name, PASSED, "")


def _raised(error: BaseException | None) -> BaseException | None:
    """What the transform raised, if that is what broke the law, from its own frames."""
    while isinstance(error, Broken):
        error = error.__cause__
    if error is None:
        return None
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename.startswith(_HERE):
        frames = frames.tb_next
    return error.with_traceback(frames)


def _bound_memory() -> None:
    """Drops what was compiled before the process has too much of it."""
    if not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()


def raise_if_broken(report: Report) -> None:
    """One AssertionError that names every broken law, from the first error raised."""
    __tracebackhide__ = True
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
        max_examples: int | None = None,
    ) -> Outcome:
        __tracebackhide__ = True
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
