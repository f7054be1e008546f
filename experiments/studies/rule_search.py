"""Is the search for rules fast, honest, and worth anything where it has not looked?

Each seed of it is evolution and chance with equally many rules. What evolution finds is
then tuned like known optimizers, on problems that the search never saw.
"""

import functools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_heavytail as oht
from experiments.configs import search_rules as defaults
from experiments.rule_search import examples, fitness, proposals
from experiments.rule_search.search import Candidate, Search, Trace
from experiments.studies import rule_search_tables as tables
from experiments.studies import tuning, unseen
from experiments.studies.study import Cell, Study
from experiments.studies.training import Contestant
from optax_heavytail import rules

SEEDS = (0, 1, 2, 3, 4)
RULES = 200  # distinct ones of each method and seed
POPULATION, SAMPLE = 32, 8
SECOND = 8  # of them, that the second tier looks at
TREES = 10_000  # random rules that are printed and read
BITS_STEPS = 50
INTERPRETED, COMPILED = 24, 2  # rules that the time is taken of

RIVALS: dict[str, Contestant] = {
    "adamw": Contestant(optax.adamw, 0.02),
    "momentum": Contestant(functools.partial(optax.sgd, momentum=0.9), 0.1),
    "lion": Contestant(optax.lion, 0.002),
    "powersign": Contestant(oht.powersign, 0.1),
    "addsign": Contestant(oht.addsign, 0.1),
    "acclip, normalised": Contestant(
        lambda rate: oht.acclip(rate, normalize=True, eps=1e-8), 0.02
    ),
}
# What known rules are, of the same decays.
TWINS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: oht.ema(0.9, debias=False),
    "corrected_momentum": lambda: oht.ema(0.9),
    "adam": oht.scale_by_adam,
    "rmsprop": lambda: oht.scale_by_adam(b1=0.0),
    "powersign": oht.scale_by_powersign,
    "addsign": oht.scale_by_addsign,
    "lion": optax.scale_by_lion,
    "cclip": lambda: optax.chain(oht.ema(0.9, debias=False), oht.clip_by_value(0.1)),
    "acclip": oht.scale_by_acclip,
    "decayed_sgd": lambda: oht.add_decayed_weights(1e-4),
    "decayed_adam": lambda: optax.chain(
        oht.scale_by_adam(), oht.add_decayed_weights(0.01)
    ),
}


def language() -> dict[str, Any]:
    """What is read, printed and computed as it should be."""
    texts = [(text, rules.BELLO) for text in examples.PUBLISHED]
    texts += [(known.text, known.vocabulary) for known in rules.KNOWN.values()]
    return {
        "published": sum(_is_whole(*text) for text in texts[: len(examples.PUBLISHED)]),
        "known": sum(_is_whole(*text) for text in texts[len(examples.PUBLISHED) :]),
        "differences": {name: _differences(name) for name in TWINS},
        **_round_trips(),
    }


def _round_trips() -> dict[str, int]:
    """How many random rules are read as what was printed."""
    rng, texts = random.Random(0), set()
    counts = {"round_trips": 0, "no_rules": 0}
    while len(texts) < TREES:
        tree = _random_rule(rng, rng.randrange(6))
        try:
            again = rules.parse(str(tree), vocabulary=rules.EXTENDED)
        except rules.RuleError:  # such as prev() of what is no average
            counts["no_rules"] += 1
            continue
        if str(tree) not in texts:
            texts.add(str(tree))
            counts["round_trips"] += again == tree and str(again) == str(tree)
    return counts


def _is_whole(text: str, vocabulary: Any) -> bool:
    """Whether it is read, printed as what is read alike, and makes updates."""
    rule = rules.parse(text, vocabulary=vocabulary)
    if rules.parse(str(rule), vocabulary=vocabulary) != rule:
        return False
    tx, params = (
        rules.transform(rule, vocabulary=vocabulary, total_steps=8),
        jnp.ones(3),
    )
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    return updates.shape == params.shape


def _random_rule(rng: random.Random, depth: int) -> Any:
    vocabulary = rules.EXTENDED
    if depth == 0 or rng.random() < 0.15:
        if rng.random() < 0.4:
            return rules.Number(rng.choice([1, 2, 0.5, 1e-4, 1e20, rng.random()]))
        return rules.Name(rng.choice(sorted(vocabulary.operands)))
    name = rng.choice(sorted(vocabulary.functions))
    function = vocabulary.functions[name]
    args = [_random_rule(rng, depth - 1) for _ in range(function.arity)]
    if function.literal:
        args[-1] = rules.Number(rng.choice([0, 0.5, 0.999]))
    return rules.Call(name, tuple(args))


def _differences(name: str) -> dict[str, float]:
    """The largest difference of a known rule and its transform, without jit and with.

    Relative to the size of the update that the transform makes.
    """
    known = rules.KNOWN[name]
    params, gradients = _heavy_gradients()
    found = {}
    for way, wrap in {"eager": lambda f: f, "jit": jax.jit}.items():
        made = []
        for tx in (
            rules.transform(known.text, vocabulary=known.vocabulary),
            TWINS[name](),
        ):
            update, state, updates = wrap(tx.update), tx.init(params), []
            for grads in gradients:
                step, state = update(grads, state, params)
                updates.append(np.asarray(step, np.float64))
            made.append(np.stack(updates))
        size = np.maximum(np.abs(made[1]), np.finfo(np.float32).tiny)
        found[way] = float(np.max(np.abs(made[0] - made[1]) / size))
    return found


@functools.cache
def _heavy_gradients() -> tuple[jax.Array, list[jax.Array]]:
    rng = np.random.default_rng(0)
    draws = rng.standard_t(1.5, size=(BITS_STEPS + 1, 257)).astype(np.float32)
    return jnp.asarray(draws[0]), list(map(jnp.asarray, draws[1:]))


def cheats() -> dict[str, Any]:
    """Why each of the rules that cheat is refused, and that honest ones are not."""
    budget = fitness.Budget(("digits",), 30, (0.01, 0.1, 1.0), (0,))
    texts = {**examples.CHEATING, "sgd": "g", "adam": "adam"}
    programs = [rules.encode(text, 3) for text in texts.values()]
    outcomes = fitness.Evaluator(budget, chunk=5)(programs)
    return {
        name: {"rule": text, "refused": fitness.judge(outcome, budget, 1).refused}
        for (name, text), outcome in zip(texts.items(), outcomes, strict=True)
    }


def speed(seed: int) -> dict[str, Any]:
    """Seconds of processor time a rule, interpreted and compiled by itself."""
    config = _config(seed)
    with tempfile.TemporaryDirectory() as folder:
        searching = Search(config, Path(folder))
        budget, chosen = searching.budget(1), _distinct(searching, seed)
    evaluate = fitness.Evaluator(budget, config.chunk)
    compiling = _processor_seconds(lambda: evaluate(chosen[: config.chunk]))
    running = _processor_seconds(lambda: evaluate(chosen))
    texts = [str(rules.decode(program)) for program in chosen[:COMPILED]]
    alone = [_processor_seconds(lambda t=t: fitness.compiled(t, budget)) for t in texts]
    return {
        "compiling_once": round(compiling - running * config.chunk / len(chosen), 4),
        "interpreted": round(running / len(chosen), 5),
        "compiled_each": round(float(np.mean(alone)), 4),
    }


def _distinct(searching: Search, seed: int) -> list[np.ndarray]:
    """Random programs of different behaviour."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < INTERPRETED:
        program = proposals.random_program(rng, searching.config.slots)
        (word,) = searching.words_of([program])
        if word is not None:
            found.setdefault(word, program)
    return list(found.values())


def _processor_seconds(work: Callable[[], Any]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _config(seed: int) -> Any:
    config = defaults.get_config()
    config.seeds, config.evaluations = (seed,), RULES
    config.evolution.population, config.evolution.sample = POPULATION, SAMPLE
    config.second = SECOND
    return config


def search(seed: int) -> dict[str, Any]:
    """Both methods, the best rule of evolution by two tiers, and that elsewhere."""
    config = _config(seed)
    with tempfile.TemporaryDirectory() as folder:
        searching = Search(config, Path(folder))
        traces = {
            method: list(searching.run(method, seed, RULES))[-1]
            for method in tables.METHODS
        }
        found = _best(searching, traces["evolution"], seed)
    elsewhere = {
        name: _on(name, _as_contestant(found["rule"], found["rate"]))
        for name in unseen.PROBLEMS
    }
    scores = {m: np.round(trace.fitness, 5).tolist() for m, trace in traces.items()}
    proposed = {method: trace.proposals for method, trace in traces.items()}
    return {"scores": scores, "proposed": proposed, "best": found, "unseen": elsewhere}


def _best(searching: Search, trace: Trace, seed: int) -> dict[str, Any]:
    """The best of a run: the first of the second tier whose losses are no rounding."""
    second = searching.best(1, trace.words, SECOND)
    searching.evaluate(2, second)
    refused: dict[str, str] = {}
    for candidate in searching.best(2, [c.word for c in second], SECOND):
        why = searching.check_in_float64(candidate)
        if why is None:
            return _described(searching, candidate) | {"refused": refused}
        refused[candidate.text] = why
    raise AssertionError(f"seed {seed}: every rule of the second tier is refused")


def _described(searching: Search, candidate: Candidate) -> dict[str, Any]:
    record = searching.archive[(2, candidate.word)]
    return {
        "rule": candidate.text,
        "nodes": record["nodes"],
        "first": round(searching.fitness(1, candidate.word), 5),
        "second": round(record["fitness"], 5),
        "rate": float(f"{np.exp(np.mean(np.log(record['rates']))):.3g}"),
    }


def _as_contestant(rule: str, rate: float) -> Contestant:
    def make(learning_rate: Any) -> optax.GradientTransformation:
        by_rate = optax.scale_by_learning_rate(learning_rate)
        return optax.chain(rules.transform(rule), by_rate)

    return Contestant(make, rate)


def _on(problem: str, contestant: Contestant) -> dict[str, Any]:
    """Tuned on a problem, and run with fresh seeds."""
    result = tuning.tune_and_run(contestant, unseen.problem(problem), unseen.PROTOCOL)
    kept = ("rate", "is_inside", "threshold", "losses", "accuracies")
    return {name: result[name] for name in kept}


def cells(scale: str, data: Path) -> list[Cell]:
    """The language, the guards, the speed, the rivals and the searches."""
    del scale, data
    made = [
        Cell({"measure": "language", "trees": TREES, "steps": BITS_STEPS}, language),
        Cell({"measure": "cheats"}, cheats),
    ]
    made += [
        Cell(
            {"measure": "search", "seed": seed, "rules": RULES},
            functools.partial(search, seed),
        )
        for seed in SEEDS
    ]
    made += [
        Cell(
            {"measure": "rival", "optimizer": name, "problem": problem},
            functools.partial(_on, problem, contestant),
        )
        for problem in unseen.PROBLEMS
        for name, contestant in RIVALS.items()
    ]
    return made + [
        Cell({"measure": "speed", "seed": seed}, functools.partial(speed, seed))
        for seed in SEEDS
    ]


STUDY = Study(cells, tables.tables, tables.pictures)
