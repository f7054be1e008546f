"""The search for rules: guards, proposals, and going on after a kill."""

import functools
import math
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common import fields, json_files
from experiments.common.errors import UserError
from experiments.configs import search_rules as configs
from experiments.rule_search import (
    examples,
    fitness,
    proposals,
    report,
    search,
    tiers,
)
from experiments.rule_search.fitness import Outcome
from experiments.rule_search.search import ARCHIVE, Search
from experiments.tasks import problems
from optax_heavytail import rules
from tests.commands import ROOT, environment, python

BUDGET = fitness.Budget(("digits",), 30, (0.01, 0.1, 1.0), (0,))
SLOTS = 3


def test_a_cross_entropy_of_large_logits_does_not_cancel():
    """What the first search found: ten equal logits of 1e8 for a loss of 0."""
    logits, labels = jnp.full((3, 10), 1e8), jnp.arange(3)
    naive = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert float(jnp.max(naive)) < 0.1
    found = float(problems.cross_entropy(logits, labels))
    assert found == pytest.approx(math.log(10))
    small = jnp.asarray(np.random.default_rng(0).normal(size=(3, 10)), jnp.float32)
    wanted = optax.softmax_cross_entropy_with_integer_labels(small, labels)
    found = float(problems.cross_entropy(small, labels))
    assert found == pytest.approx(float(jnp.mean(wanted)), rel=1e-6)


@functools.cache
def _verdicts():
    """Of all that cheat, and of two that do not, in one compiled program."""
    texts = {**examples.CHEATING, "sgd": "g", "adam": "adam"}
    evaluate = fitness.Evaluator(BUDGET, chunk=5)
    outcomes = evaluate([rules.encode(text, SLOTS) for text in texts.values()])
    found = dict(zip(texts, outcomes, strict=True))
    return found, {name: fitness.judge(out, BUDGET, 1) for name, out in found.items()}


@pytest.mark.parametrize("name", examples.CHEATING)
def test_rules_that_cheat_are_refused(name):
    verdict = _verdicts()[1][name]
    assert verdict.refused is not None
    assert verdict.fitness == fitness.WORST


def test_rules_that_learn_are_not_refused():
    ceiling = problems.named()["digits"].ceiling
    for name in ("sgd", "adam"):
        verdict = _verdicts()[1][name]
        assert verdict.refused is None
        assert verdict.losses[0] < 0.7 * ceiling
        assert verdict.rates[0] in BUDGET.rates


def test_the_interpreter_is_the_rule_compiled():
    wanted = fitness.compiled("adam", BUDGET)
    for got, want in zip(_verdicts()[0]["adam"], wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-2)  # what 30 steps make of bits


def _outcome(loss, errors=0.0, growth=1.0):
    shape = (1, 1, 3)
    return Outcome(*(np.full(shape, x) for x in (loss, errors, growth)))


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (_outcome(0.0, errors=0.9), "a loss that its errors rule out"),
        (_outcome(0.2, errors=0.5), "a loss that its errors rule out"),
        (_outcome(-1.0), "a loss below 0"),
        (_outcome(np.nan), "it learns nothing"),
        (_outcome(np.inf), "it learns nothing"),
        (_outcome(2.4, errors=0.9), "it learns nothing"),
        (_outcome(0.1, growth=1e5), "weights beyond 10000 times"),
        (_outcome(0.1, growth=np.inf), "weights beyond 10000 times"),
        (_outcome(0.1, growth=np.nan), "weights beyond 10000 times"),
    ],
)
def test_what_is_refused(outcome, reason):
    verdict = fitness.judge(outcome, BUDGET, 1)
    assert reason in verdict.refused
    assert verdict.fitness == fitness.WORST


def test_fitness_is_that_of_the_best_rate_and_of_the_shorter_rule():
    loss = np.array([[[0.5, 0.1, np.nan]]])
    outcome = Outcome(loss, np.zeros_like(loss), np.ones_like(loss))
    short, long = (fitness.judge(outcome, BUDGET, nodes) for nodes in (1, 5))
    assert short.losses == pytest.approx((0.1,))
    assert short.rates == (BUDGET.rates[1],)
    assert short.fitness == pytest.approx(math.log(0.11) + 0.002)
    assert long.fitness - short.fitness == pytest.approx(0.008)


def test_children_are_programs():
    rng = np.random.default_rng(0)
    parent, changed = rules.encode("adam * exp(sign(g) * sign(m))", SLOTS), 0
    for _ in range(1500):
        child = proposals.mutate(rng, parent)
        rules.decode(child)  # refuses what refers to no earlier row
        changed += not np.array_equal(child, parent)
        parent = child
    assert changed > 1200


def test_rows_that_the_update_uses():
    program = rules.encode("adam * exp(sign(g) * sign(m))", slots=4)
    assert proposals.live_rows(program).tolist() == [False, False, True, True]
    left = rules.PROGRAM_BINARY.index("left")
    unused = np.array([[0, 0, 0, 0, 0], [1, 16, 0, 0, left]])
    assert proposals.live_rows(unused).tolist() == [False, True]


def test_the_oldest_dies_however_good_it_is():
    evolution = proposals.Evolution(np.random.default_rng(0), SLOTS, 8, 8)
    (best, *_) = evolution.propose(1)
    evolution.hear(best, -9.0)
    for _ in range(7):
        evolution.hear(best + 0, 1.0)
    assert min(fit for _, fit in evolution._alive) == -9.0
    evolution.hear(best, 1.0)
    assert min(fit for _, fit in evolution._alive) == 1.0


def test_evolution_beats_chance_where_fitness_can_be_climbed():
    """Fitness is the distance to a program: chance knows nothing of it."""
    goal = rules.encode("rmsprop * exp(sign(g) * sign(m))", SLOTS)

    def best(proposer):
        scores = []
        for _ in range(600):
            (program,) = proposer.propose(1)
            scores.append(float(np.sum(program != goal)))
            proposer.hear(program, scores[-1])
        return min(scores)

    rngs = [np.random.default_rng(seed) for seed in range(3)]
    evolved = [best(proposals.Evolution(rng, SLOTS, 32, 6)) for rng in rngs]
    drawn = [best(proposals.Chance(rng, SLOTS)) for rng in rngs]
    assert max(evolved) < min(drawn)


def test_everything_is_each_program_of_a_row_once():
    everything = proposals.Everything()
    found = [p.tobytes() for p in everything.propose(5000)]
    assert len(set(found)) == 5000
    total = 5000
    while programs := everything.propose(20_000):
        total += len(programs)
    operands, unary = len(rules.PROGRAM_OPERANDS), len(rules.PROGRAM_UNARY)
    assert total == operands**2 * unary**2 * len(rules.PROGRAM_BINARY)


@pytest.mark.nightly
def test_programs_of_several_lengths_keep_their_order():
    """As when anchors of two and three rows stand beside all programs of one."""
    budget = fitness.Budget(("quadratic",), 2, (0.1,), (0,))
    texts = {"g": 1, "m": 3, "adam": 1, "rmsprop": 3, "g2": 1}
    programs = [rules.encode(text, slots) for text, slots in texts.items()]
    mixed = fitness.Evaluator(budget, chunk=2)(programs)
    evaluate = fitness.Evaluator(budget, chunk=1)
    for program, found in zip(programs, mixed, strict=True):
        np.testing.assert_array_equal(found.loss, evaluate([program])[0].loss)
    assert len({float(found.loss[0, 0, 0]) for found in mixed}) == len(texts)


class Distances:
    """In the place of trainings: scores from the program alone, and a count."""

    calls = 0

    def __init__(self, budget, chunk):
        self.budget = budget

    def __call__(self, programs):
        Distances.calls += len(programs)
        shape = (len(self.budget.problems), 1, len(self.budget.rates))
        sums = [0.01 + (int(np.sum(p * np.arange(1, 6))) % 97) / 50 for p in programs]
        return [
            Outcome(np.full(shape, s), np.zeros(shape), np.ones(shape)) for s in sums
        ]


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(fitness, "Evaluator", Distances)
    Distances.calls = 0


def _config(**changes):
    config = configs.get_config("smoke")
    config.evaluations = 40
    config.update(changes)
    return config


def _traces(config, folder):
    searching = Search(config, folder)
    methods = config.methods
    traces = [list(searching.run(m, 0, config.evaluations))[-1] for m in methods]
    return searching, traces


def test_a_search_that_was_killed_goes_on(no_training, tmp_path):
    config = _config()
    _, wanted = _traces(config, tmp_path / "whole")
    total = Distances.calls
    lines = (tmp_path / "whole" / ARCHIVE).read_bytes().splitlines(keepends=True)
    assert len(lines) == total <= 80
    for kept in (0, 1, 17, len(lines) - 1):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / ARCHIVE).write_bytes(b"".join(lines[:kept]) + lines[kept][:-9])
        Distances.calls = 0
        searching, traces = _traces(config, folder)
        assert traces == wanted
        assert Distances.calls == total - kept
        fingerprints = [r["fingerprint"] for r in searching.archive.records]
        assert len(fingerprints) == len(set(fingerprints)) == total


class Twice:
    """Proposes a rule again before it is evaluated, and keeps what it hears."""

    ends = True

    def __init__(self):
        program = rules.encode("g * m", SLOTS)
        self._left = [[program, program]]
        self.heard = []

    def propose(self, number):
        return self._left.pop() if self._left else []

    def hear(self, program, fitness):
        self.heard.append(fitness)


def test_what_still_waits_is_not_known_from_an_earlier_search(
    no_training, tmp_path, monkeypatch
):
    heard = []
    for _ in range(2):  # the second has the archive of the first
        proposed = Twice()
        monkeypatch.setattr(search, "_proposals", lambda *_, it=proposed: it)
        list(Search(_config(chunk=4), tmp_path).run("random", 0, 40))
        heard.append(proposed.heard)
    assert Distances.calls == 1
    assert heard[0] == heard[1]
    assert len(heard[0]) == 1


def test_each_behaviour_is_evaluated_once(no_training, tmp_path):
    searching, traces = _traces(_config(), tmp_path)
    for trace in traces:
        assert len(trace.words) == len(set(trace.words)) == len(trace.fitness)
    texts = {searching.texts[word].text for trace in traces for word in trace.words}
    assert Distances.calls == len(texts)


@pytest.mark.nightly
def test_all_rules_of_one_row_go_through_to_the_end(no_training, tmp_path, monkeypatch):
    """Also where hundreds in a row are known, and anchors take more rows than one."""
    monkeypatch.setattr(search, "_PATIENCE", 3)
    monkeypatch.setattr(fitness, "in_float64", lambda *_: None)
    config = _config(methods=("enumerate",), slots=1, evaluations=200)
    searching, (trace,) = _traces(config, tmp_path)
    assert len(trace.words) == 200
    assert trace.proposals > 300
    found = tiers.select(searching, [trace])
    assert set(found.anchors) == set(search.ANCHORS)
    assert report.write(searching, [trace], found)


def test_a_list_with_the_same_rule_many_times_is_read_to_its_end(
    no_training, tmp_path, monkeypatch
):
    monkeypatch.setattr(search, "_PATIENCE", 3)
    path = tmp_path / "mine.txt"
    path.write_text("g\n" * 20 + "m\n", encoding="utf-8")
    config = _config(methods=("given",), given=str(path), chunk=1)
    searching, (trace,) = _traces(config, tmp_path / "run")
    assert [searching.texts[w].text for w in trace.words] == ["g", "m"]


def test_where_every_rule_is_refused_there_is_still_a_report(
    no_training, tmp_path, monkeypatch
):
    monkeypatch.setattr(fitness, "in_float64", lambda *_: "rounding")
    searching, traces = _traces(_config(), tmp_path)
    found = tiers.select(searching, traces)
    assert not found.best
    table = report.write(searching, traces, found)
    assert "adam" in table
    assert not (tmp_path / "best.txt").exists()
    assert "rounding" in (tmp_path / "rules.md").read_text(encoding="utf-8")


def test_a_folder_of_another_search_is_refused(no_training, tmp_path):
    _traces(_config(), tmp_path)
    with pytest.raises(UserError, match="another config, which differs in slots"):
        Search(_config(slots=2), tmp_path)


def test_rules_of_a_file(no_training, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\ng\n\nadam * exp(m)\n", encoding="utf-8")
    config = _config(methods=("given",), given=str(path))
    searching, (trace,) = _traces(config, tmp_path / "run")
    assert [searching.texts[w].text for w in trace.words] == ["g", "adam * exp(m)"]
    for text, message in (
        ("g * sgn(m)", "column 5: unknown name 'sgn'"),
        ("", "has no rule"),
        ("g + noise", "is not among the operands of a program"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            _traces(config, tmp_path / "run")
    config = _config(methods=("random", "given"), given=str(tmp_path / "none.txt"))
    with pytest.raises(
        UserError, match=r"none\.txt: No such file or directory; a text"
    ):
        Search(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("variant", configs.VARIANTS)
def test_configs_are_what_their_fields_say(variant):
    fields.check(configs.get_config(variant), configs.FIELDS)


def test_wrong_configs():
    with pytest.raises(UserError, match="huge: must be full, short or smoke"):
        configs.get_config("huge")
    for name, value in (("methods", ("magic",)), ("slots", 0), ("evaluations", -1)):
        config = _config(**{name: value})
        with pytest.raises(UserError, match=rf"config\.{name}="):
            fields.check(config, configs.FIELDS)


def test_the_report(no_training, monkeypatch, tmp_path):
    monkeypatch.setattr(fitness, "in_float64", lambda *_: None)
    config = _config(second=4, third=2)
    searching, traces = _traces(config, tmp_path)
    found = tiers.select(searching, traces)
    table = report.write(searching, traces, found)
    assert found.best[0].text in table
    assert "adam" in table
    for name in ("progress.png", "front.png", "rules.md", "report.html", "best.txt"):
        assert (tmp_path / name).stat().st_size > 0
    code = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "rules.transform(" in code
    rules.parse((tmp_path / "best.txt").read_text(encoding="utf-8").strip())


def _archived(folder):
    """Everything but how long it took."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in json_files.read_lines(folder / ARCHIVE).records
    ]


@pytest.mark.nightly
def test_a_search_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    """By SIGKILL, in the first tier, in later ones, and in the middle of a line."""
    config = "--config=experiments/configs/search_rules.py:smoke"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ("-m", "experiments.search_rules", config)
    done = python(*command, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    for lines in (1, 9, 18):
        process = subprocess.Popen(
            [sys.executable, *command, f"--workdir={killed}"],
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(),
        )
        while len(_archived(killed)) < lines:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        with (killed / ARCHIVE).open("ab") as file:
            file.write(b'{"tier": 2, "finger')
    assert len(_archived(killed)) < len(_archived(whole))
    done = python(*command, f"--workdir={killed}")
    assert done.returncode == 0, done.stderr
    assert _archived(killed) == _archived(whole)
    for name in ("results.json", "best.txt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in killed.iterdir()) == names
