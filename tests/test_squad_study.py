"""From a text and questions to the tables: the study's runs, at toy sizes."""

import json
import re

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data import squad, squad_sample, text, tokenizer
from experiments.models import bert
from experiments.runs import folders
from experiments.studies import datasets, squad_guesses, squad_tables, tuning
from experiments.studies import squad as study
from experiments.studies.training import LOST
from experiments.tasks import squad_answers
from tests.toy_runs import read

ONE = tuning.Protocol(points=1, rate_factor=2.0, tuning_seeds=(0,), fresh_seeds=(1, 2))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The study on the embedded questions, in a folder of its own."""
    document = squad_sample.document()
    (tmp_path / "questions.json").write_text(json.dumps(document))
    contexts = [p["context"] for a in document["data"] for p in a["paragraphs"]]
    (tmp_path / "text.txt").write_text("\n\n".join(contexts))
    files = {study.QUESTIONS: "questions.json", study.TEXT: "text.txt"}
    monkeypatch.setattr(datasets, "find", lambda folder, name: folder / files[name])
    tiny = {"num_layers": 1, "width": 8, "num_heads": 1, "mlp_width": 8}
    monkeypatch.setitem(bert.SIZES, "tiny", tiny)
    number = len(document["data"])
    shares = {"train": number - 2, "validation": 1, "test": 1}
    changes = {"FOLDER": tmp_path / "runs", "ARTICLES": shares, "LENGTH": 48}
    changes |= {"QUESTION_LENGTH": 24, "STRIDE": 12, "VOCABULARY": 280}
    changes |= {"PRETRAINING_STEPS": 2, "STEPS": 2, "BATCH_SIZE": 4, "PROTOCOL": ONE}
    for name, value in changes.items():
        monkeypatch.setattr(study, name, value)
    return tmp_path


@pytest.mark.nightly
def test_the_way_from_a_text_to_answers(small):
    parts = study.write_parts(small)
    pretrained = study.pretrain(small)
    # A folder of data sets that is another, or named in another way, changes no run.
    elsewhere = small / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "text.txt").write_bytes((small / "text.txt").read_bytes())
    assert study.pretrain(elsewhere) == pretrained
    (workdir,) = study.finetune("acclip", squad_tables.PRETRAINED, "test", [1e-9], 1)
    # At no rate the encoder is the pre-trained one.
    theirs = read(small / "runs/encoder/params")["encoder"]
    mine = read(workdir / "params")["encoder"]
    for name in ("token", "position"):
        one, other = (x["embeddings"][name]["embedding"] for x in (mine, theirs))
        np.testing.assert_allclose(one, other, atol=1e-7)
    answers = json.loads((workdir / folders.PREDICTIONS_FILE).read_text())
    examples = [example for article in parts["test"] for example in article]
    assert list(answers) == [example.id for example in examples]
    assert all(answers[example.id] in example.context for example in examples)
    score = squad_answers.evaluate(examples, list(answers.values()))
    final = study.final(workdir)
    assert {name: final[name] for name in score} == score
    end = study.ending(workdir)
    assert end["by_article"] == {name: [pytest.approx(x)] for name, x in score.items()}
    # Predictions that are gone are made again, others are refused.
    (workdir / folders.PREDICTIONS_FILE).unlink()
    assert folders.damage(workdir, final) == "predictions.json is gone"
    (workdir / folders.PREDICTIONS_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"predictions\.json is not .* checkpoint"):
        study.finetune("acclip", squad_tables.PRETRAINED, "test", [1e-9], 1)


def test_a_run_that_is_lost_has_no_answers(small, monkeypatch):
    study.write_parts(small)
    record = {"status": "diverged", "step": 1, "loss": None, "data": {}}
    monkeypatch.setattr(study, "final", lambda workdir: record)
    end = study.ending(small / "lost")
    assert study.f1_of(small / "lost") == end["f1"] == end["exact_match"] == 0
    assert end["by_article"] == {name: [0.0] for name in squad_tables.SCORES}
    assert end["loss"] == end["train_loss"] == LOST
    table = squad_tables.losses({("acclip", squad_tables.RANDOM): {"seeds": [end]}})
    assert "| 100.00 | 100.00 | 0.0% |" in table


def test_rates_are_chosen_on_other_articles_than_the_test(small, monkeypatch):
    """F1 by formula: the best rate is four times the middle, in the second grid."""
    monkeypatch.setattr(study, "PROTOCOL", ONE._replace(points=3))
    seen = []

    def finetune(name, start, part, rates, seed):
        seen.append((part, len(rates), seed))
        return [small / f"{part}/{rate:.6g}/{seed}" for rate in rates]

    def final(workdir):
        rate = float(workdir.parent.name)
        return {"f1": 50 - abs(np.log2(rate / study.CONTESTANTS["acclip"].rate) - 2)}

    monkeypatch.setattr(study, "pretrain", lambda data: None)
    monkeypatch.setattr(study, "finetune", finetune)
    monkeypatch.setattr(study, "final", final)
    monkeypatch.setattr(study, "ending", lambda workdir: workdir.parts[-3:])
    found = study.measure("acclip", squad_tables.RANDOM, small)
    rate = 4 * study.CONTESTANTS["acclip"].rate
    assert found["rate"] == pytest.approx(rate)
    assert (found["moves"], found["is_inside"]) == (2, True)
    assert max(found["validation_f1"]) == 50
    ends = [("test", f"{rate:.6g}", str(seed)) for seed in ONE.fresh_seeds]
    assert found["seeds"] == ends
    tried = [("validation", number, 0) for number in (3, 1, 1)]
    assert seen == [*tried, ("test", 1, 1), ("test", 1, 2)]


def test_random_weights_have_the_tokens_of_the_encoder(small, monkeypatch):
    encoder = small / "runs/encoder"
    encoder.mkdir(parents=True)
    tokenizer.save(text.train_tokenizer(["some text"], 60), encoder)
    seen = []
    monkeypatch.setattr(study, "run", lambda *arguments: seen.append(arguments))
    (workdir,) = study.finetune("acclip", squad_tables.RANDOM, "test", [0.1], 1)
    ((configs, workdirs),) = seen
    assert workdirs == [workdir]
    assert [config.data.pretrained for config in configs] == [""]
    name = tokenizer.FILE
    assert (workdir / name).read_bytes() == (encoder / name).read_bytes()


def test_parts_have_whole_articles_once():
    document = {"data": [{"title": i} for i in range(48)]}
    parts = study.split(document)
    assert {name: len(part["data"]) for name, part in parts.items()} == study.ARTICLES
    titles = [article["title"] for part in parts.values() for article in part["data"]]
    assert sorted(titles) == list(range(48)) != titles


def test_a_clip_is_part_of_the_baseline():
    clipped, bare = (
        study.finetuning(entry, squad_tables.RANDOM, "test", 0.5, 3)
        for entry in study.CONTESTANTS.values()
    )
    assert clipped.aggregation.to_dict() == {
        "name": "mean_of_clipped",
        "kwargs": {"max_norm": 1.0},
    }
    assert bare.aggregation.name == "mean"
    assert bare.optimizers[bare.optimizer.name].learning_rate == 0.5
    assert (bare.seed, bare.data.pretrained) == (3, "")


def example(answer, context="a b c d e f g h i j"):
    start = context.index(answer)
    return squad.Example(answer, "?", context, (squad.Answer(start, answer),))


def test_guesses_are_those_of_the_training_articles():
    """Words 6 and 7 of ten; of the test articles the best span would be another."""
    train = [(example("f g"), example("f g"), example("b"))]
    test = [(example("f g"), example("f g h i")), (example("c d"), example("c d"))]
    found = squad_guesses.all_of(train, test)
    assert (found["place"], found["length"]) == (0.5, 2)
    assert (found["answer"], found["answer_count"]) == ("f g", 2)
    # Of "f g" against "f g h i" precision is 1 and recall 1/2.
    constant = found["scores"]["constant span"]
    assert constant["by_article"]["f1"] == [pytest.approx(250 / 3, rel=1e-4), 0]
    assert constant["f1"] == pytest.approx(500 / 12, rel=1e-4)
    assert constant["exact_match"] == pytest.approx(25, rel=1e-4)
    assert found["scores"]["constant answer"]["f1"] == constant["f1"]
    # A random span of one or two words is "c d" once in 9 of two in three draws.
    chance = found["scores"]["random span"]["by_article"]["exact_match"][1]
    assert chance == pytest.approx(100 * 2 / 3 / 9, abs=4)


def test_differences_are_of_seeds_and_of_articles():
    def result(f1, by_article):
        seeds = zip(f1, by_article, strict=True)
        return {"seeds": [{"f1": x, "by_article": {"f1": y}} for x, y in seeds]}

    starts = squad_tables.STARTS
    runs = {
        (squad_tables.BASELINE, starts[0]): result([4, 6], [[1, 9, 2], [3, 9, 2]]),
        (squad_tables.BASELINE, starts[1]): result([3, 3], [[0, 6, 2], [0, 8, 2]]),
    }
    guess = {"f1": 2.0, "by_article": {"f1": [1.0, 3.0, 1.0]}}
    low = {"f1": 1.0, "by_article": {"f1": [1.0, 1.0, 1.0]}}
    guesses = {"scores": {squad_tables.CHANCE: guess, "another": low}}
    table = squad_tables.differences(runs, guesses).splitlines()
    assert len(table) == 2 + 2 + 1
    cells = [re.findall(r"[+-]\d+\.\d+(?= \[| \()", row) for row in table]
    assert cells[2:] == [["+3.00", "+2.67"], ["+1.00", "+1.33"], ["+2.00", "+1.33"]]
