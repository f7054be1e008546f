r"""Searches for update rules on small problems, and says how they do on others.

python -m experiments.search_rules --config=experiments/configs/search_rules.py \
    --workdir=runs/search_rules

``:short`` is the whole of it with few rules. Stopped, it goes on where it was. Leaves
``progress.png``, ``front.png``, ``rules.md``, ``best.txt``, ``report.html`` and
``archive.jsonl``, a line for each rule that was evaluated.
"""

import jax

from experiments.common import cli, fields
from experiments.common.errors import UserError
from experiments.configs import search_rules as defaults
from experiments.rule_search import report, tiers
from experiments.rule_search.search import Search
from experiments.runs import folders


def main() -> None:
    """Searches as the config says."""
    if jax.process_count() > 1:
        raise UserError("a search is the work of one process; leave --distributed")
    config = cli.config()
    fields.check(config, defaults.FIELDS)
    with folders.locked(cli.workdir()):
        search = Search(config, cli.workdir())
        report.check_targets(search.workdir)
        traces = tiers.runs(search)
        found = tiers.select(search, traces)
        print(report.write(search, traces, found))
        print(f"\nreport: {search.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, {"the search": defaults.FIELDS}, resumes_with_changes=False)
