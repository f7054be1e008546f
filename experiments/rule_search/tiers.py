"""From proposals to the rules that are reported, tier by tier."""

from experiments.common import progress
from experiments.rule_search import report
from experiments.rule_search.search import Candidate, Search, Trace


def runs(search: Search) -> list[Trace]:
    """All methods with all seeds."""
    config = search.config
    pairs = [(method, seed) for method in config.methods for seed in config.seeds]
    traces = []
    with progress.run_bar("rules", len(pairs) * config.evaluations) as bar:
        done = 0
        for method, seed in pairs:
            trace = Trace(method, seed, [], [], 0)
            for trace in search.run(method, seed, config.evaluations):
                best = min(trace.fitness, default=0.0)
                bar.update(done + len(trace.words), note=f"{method} {best:.3f}")
            done += config.evaluations
            traces.append(trace)
    return traces


def select(search: Search, traces: list[Trace]) -> report.Found:
    """The best by the second tier, in float64 as well, and their holdout."""
    config, anchors = search.config, search.anchors()
    everything = sorted({word for trace in traces for word in trace.words})
    second = search.best(1, everything, config.second)
    search.evaluate(1, list(anchors.values()))
    search.evaluate(2, [*second, *anchors.values()])
    best: list[Candidate] = []
    refused: dict[str, str] = {}
    for candidate in search.best(2, [c.word for c in second], len(second)):
        if len(best) == config.third:
            break
        why = search.check_in_float64(candidate)
        if why is None:
            best.append(candidate)
        else:
            refused[candidate.text] = why
    search.evaluate(3, [*best, *anchors.values()])
    return report.Found(best, anchors, refused, _held(search, traces))


def _held(search: Search, traces: list[Trace]) -> dict[int, list[tuple[int, float]]]:
    """The holdout of the best so far, at some places of the first method's runs."""
    config, found = search.config, {}
    for trace in traces:
        if trace.method != config.methods[0] or not trace.words:
            continue
        total = len(trace.words)
        places = sorted(
            {max(1, total * k // config.held) for k in range(1, config.held + 1)}
        )
        points = []
        for place in places:
            leaders = search.best(1, trace.words[:place], 1)
            search.evaluate(3, leaders)
            points += [(place, search.fitness(3, c.word)) for c in leaders]
        found[trace.seed] = points
    return found
