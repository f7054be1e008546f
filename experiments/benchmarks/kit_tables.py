"""Tables of what the conformance kit said of many optimizers."""

from collections.abc import Mapping, Sequence

from experiments.common import markdown
from optax_heavytail import testing

MARKS = {"passed": "·", "broken": "**✗**", "skipped": "-"}


def tables(reports: Mapping[str, testing.Report]) -> str:
    """The two tables, and what is broken among the default laws, in words."""
    failures = [_failures(name, report) for name, report in reports.items()]
    parts = [
        _table("default laws", testing.DEFAULT_LAWS, reports),
        _table("laws for some", testing.OPTIONAL_LAWS, reports),
    ]
    if any(failures):
        listed = "\n".join(filter(None, failures))
        parts += [f"What was broken among the default laws:\n\n{listed}"]
    return "\n\n".join(parts)


def _table(
    title: str, laws: Sequence[str], reports: Mapping[str, testing.Report]
) -> str:
    rows = []
    for name, report in reports.items():
        status = {o.law: MARKS[o.status] for o in report.outcomes}
        rows.append([f"`{name}`", *(status.get(law, "-") for law in laws)])
    headings = [title, *(law.replace("_", " ") for law in laws)]
    return markdown.table(headings, rows, rule=":-:")


def _failures(name: str, report: testing.Report) -> str:
    broken = [o for o in report.with_status("broken") if _is_default(o.law)]
    lines = [f"  - {o.law}: `{_first_line(o.detail)}`" for o in broken]
    return "\n".join([f"- `{name}`", *lines]) if lines else ""


def _is_default(law: str) -> bool:
    return law not in testing.OPTIONAL_LAWS


def _first_line(detail: str) -> str:
    return detail.splitlines()[0].replace("`", "'")
