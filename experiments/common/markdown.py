"""Tables and marked blocks of Markdown pages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.errors import UserError


def table(
    headings: Sequence[Any], rows: Sequence[Sequence[Any]], rule: str = "---"
) -> str:
    """A table, without a newline at its end.

    Args:
      headings: of its columns.
      rows: of as many cells; what a cell has of bars and newlines does not end it.
      rule: what stands under every heading but the first; ``:-:`` centres the column.

    Raises:
      ValueError: a row has another number of cells.
    """
    rules = ["---", *[rule] * (len(headings) - 1)]
    if any(len(row) != len(headings) for row in rows):
        raise ValueError(f"every row must have {len(headings)} cells")
    return "\n".join(
        f"| {' | '.join(map(_cell, row))} |" for row in (headings, rules, *rows)
    )


def _cell(value: Any) -> str:
    return " ".join(str(value).splitlines()).replace("|", r"\|")


def block(page: str, name: str) -> str:
    """What is between the marks of a block; empty without such a block."""
    marks = rf"<!-- begin {name} -->\n(.*?)\n<!-- end {name} -->"
    found = re.search(marks, page, re.DOTALL)
    return found[1] if found else ""


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """Puts each block between its marks in a page.

    Raises:
      UserError: a block has no marks, or marks have no block or no other end.
    """
    found = re.findall(r"<!-- (begin|end) (\w+) -->", page)
    marks = [name for mark, name in found if mark == "begin"]
    if sorted(marks) != sorted(blocks):
        raise UserError(f"a page has blocks {sorted(marks)}, not {sorted(blocks)}")
    wanted = [(mark, name) for name in marks for mark in ("begin", "end")]
    if found != wanted:
        marks = [name for mark, name in found if mark == "end"]
        raise UserError(f"a page has ends of blocks {marks}, not one after each begin")
    for name, text in blocks.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n{text.strip()}\n{end}{after}"
    return page
