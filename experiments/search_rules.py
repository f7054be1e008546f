r"""Searches for update rules on small problems, and says how they do on others.

python -m experiments.search_rules --config=experiments/configs/search_rules.py \
    --workdir=runs/search_rules

``:short`` is the whole of it with few rules. Stopped, it goes on where it was. Leaves
``progress.png``, ``front.png``, ``rules.md``, ``best.txt``, ``report.html`` and
``archive.jsonl``, a line for each rule that was evaluated.
"""

from experiments.common import cli, distributed, fields
from experiments.configs import search_rules as defaults
from experiments.rule_search import report, tiers
from experiments.rule_search.search import Search


def main() -> None:
    """Searches as the config says."""
    config = cli.config()
    fields.check(config, defaults.FIELDS)
    search = Search(config, cli.workdir())
    traces = tiers.runs(search)
    found = tiers.select(search, traces)
    distributed.say(report.write(search, traces, found))
    distributed.say(f"\nreport: {search.workdir / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, {"the search": defaults.FIELDS})
