"""Does the way from a text to answers work, and what is learnt on it at this size?

A BERT of two layers is pre-trained on WikiText-2's test part and fine-tuned on articles
of XQuAD, by the trainer itself: its configs, its folders, its predictions. Whole
articles are for training, for choosing the rate, and for the test.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.common import files, json_files
from experiments.common.types import Config
from experiments.configs import bert_tiny, mlm_defaults
from experiments.configs import squad as squad_config
from experiments.data import squad, tokenizer
from experiments.data.squad import Article
from experiments.runs import folders, reading
from experiments.runs.outcome import Outcome
from experiments.studies import (
    datasets,
    squad_guesses,
    squad_tables,
    study,
    training,
    tuning,
)
from experiments.studies.study import Cell, Study
from experiments.studies.training import Contestant, Curves, Point
from experiments.tasks import squad_answers
from experiments.training import optimizers, trainer

TEXT, QUESTIONS = "wikitext2/test.txt", "xquad/xquad.en.json"
FOLDER = study.ROOT / "runs" / "evidence_squad"  # of the runs, which are used again
ENCODER = "encoder"
ARTICLES = {"train": 32, "validation": 6, "test": 10}
SPLIT_SEED = 0
LENGTH, QUESTION_LENGTH, STRIDE, VOCABULARY = 192, 48, 128, 2048  # tokens
BATCH_SIZE = 16
PRETRAINING_STEPS, STEPS = 2000, 200
PROTOCOL = tuning.Protocol(
    points=5, rate_factor=3.0, tuning_seeds=(0,), fresh_seeds=(10, 11, 12)
)


class Entry(NamedTuple):
    """An optimizer of the configs, and the middle of its grid."""

    name: str
    rate: float
    max_norm: float | None = None  # of the gradient, by `config.aggregation`


CONTESTANTS = {
    squad_tables.BASELINE: Entry("adamw", 1e-3, max_norm=1.0),
    "acclip": Entry("acclip", 1e-3),
}
ARMS = (
    (squad_tables.BASELINE, squad_tables.PRETRAINED),
    (squad_tables.BASELINE, squad_tables.RANDOM),
    ("acclip", squad_tables.PRETRAINED),
)


def pretraining() -> Config:
    """The config of the encoder's run, on a text that is in `FOLDER`."""
    config = bert_tiny.get_config()
    config.steps, config.batch_size = PRETRAINING_STEPS, BATCH_SIZE
    config.num_devices = 1
    config.log_every, config.eval_every = 100, 500
    config.data.path = str(FOLDER / "text.txt")
    config.data.vocab_size, config.data.sequence_length = VOCABULARY, LENGTH
    config.optimizer.name = "adamw"
    return config


def finetuning(entry: Entry, start: str, part: str, rate: float, seed: int) -> Config:
    """The config of a run that is evaluated on a part of the articles."""
    config = squad_config.get_config()
    config.seed = seed
    config.steps = config.eval_every = config.checkpoint.every = STEPS
    config.batch_size, config.num_devices = BATCH_SIZE, 1
    config.data.update(
        path=str(FOLDER / "train.json"),
        validation_path=str(FOLDER / f"{part}.json"),
        sequence_length=LENGTH,
        question_length=QUESTION_LENGTH,
        stride=STRIDE,
    )
    if start == squad_tables.PRETRAINED:
        config.data.pretrained = str(FOLDER / ENCODER)
    config.model = mlm_defaults.model("tiny", init_stddev=0.07, dropout=0.0)
    config.optimizer.name = entry.name
    config.optimizers[entry.name].learning_rate = rate
    if entry.max_norm is not None:
        config.aggregation.name = "mean_of_clipped"
        with config.aggregation.unlocked():
            config.aggregation.kwargs = {"max_norm": entry.max_norm}
    return config


def split(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Documents of whole articles, drawn once."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(document["data"]))
    parts = np.split(order, np.cumsum(list(ARTICLES.values()))[:-1])
    return {
        name: {"data": [document["data"][i] for i in part.tolist()]}
        for name, part in zip(ARTICLES, parts, strict=True)
    }


def write_parts(data: Path) -> dict[str, list[Article]]:
    """The articles of each part, which are files in `FOLDER` then."""
    document = json_files.read_object(datasets.find(data, QUESTIONS))
    files.make_folder(FOLDER)
    for name, part in split(document).items():
        files.write_atomically(FOLDER / f"{name}.json", json.dumps(part))
    return {name: read_part(name) for name in ARTICLES}


def read_part(name: str) -> list[Article]:
    """The articles of a part that is written."""
    path = FOLDER / f"{name}.json"
    return squad.parse(json_files.read_object(path), str(path))


def pretrain(data: Path) -> dict[str, Any]:
    """What the encoder's run ends with, wherever the data sets are."""
    content = datasets.find(data, TEXT).read_bytes()
    files.make_folder(FOLDER)
    files.write_atomically(FOLDER / "text.txt", content)
    (outcome,) = run([pretraining()], [FOLDER / ENCODER])
    record, of_text = outcome.record, outcome.record["data"]
    names = ("loss", "accuracy", "baselines", "parameters")
    return {
        **{name: record[name] for name in names},
        **{name: of_text[name] for name in ("train_tokens", "vocabulary")},
    }


def run(configs: Sequence[Config], workdirs: Sequence[Path]) -> list[Outcome]:
    """Runs that differ in the rate alone: one program serves them all."""
    jobs, programs = trainer.prepare(configs)
    pairs = zip(jobs, workdirs, strict=True)
    return [trainer.run(job, workdir, programs) for job, workdir in pairs]


def finetune(
    name: str, start: str, part: str, rates: Sequence[float], seed: int
) -> list[Path]:
    """The folders of finished runs, one for each rate."""
    workdirs = [FOLDER / f"{name}/{start}/{part}/{r:.6g}/{seed}" for r in rates]
    if start != squad_tables.PRETRAINED:
        # The same tokens, so that nothing but the weights is another.
        tokens = tokenizer.read(FOLDER / ENCODER / tokenizer.FILE)
        for workdir in workdirs:
            files.make_folder(workdir)
            tokenizer.save(tokens, workdir)
    entry = CONTESTANTS[name]
    run([finetuning(entry, start, part, rate, seed) for rate in rates], workdirs)
    return workdirs


def measure(name: str, start: str, data: Path) -> dict[str, Any]:
    """The rate of the best F1 on the validation articles; fresh seeds on the others."""
    write_parts(data)
    pretrain(data)

    def by_rate(points: Sequence[Point], seeds: Sequence[int]) -> Curves:
        rates = [point.rate for point in points]
        runs = [finetune(name, start, "validation", rates, seed) for seed in seeds]
        short = 100 - np.array([[f1_of(folder) for folder in row] for row in runs]).T
        return Curves(short[..., None], short[..., None], {})

    entry = CONTESTANTS[name]
    contestant = Contestant(optimizers.BUILDERS[entry.name], entry.rate)
    tuned = tuning.tune(contestant, by_rate, PROTOCOL)
    rate = tuned.best.rate
    ends = [
        ending(workdir)
        for seed in PROTOCOL.fresh_seeds
        for workdir in finetune(name, start, "test", [rate], seed)
    ]
    return {
        "rates": study.rounded(tuned.rates),
        "validation_f1": study.rounded(100 - tuned.losses),
        "rate": study.rounded([rate])[0],
        "is_inside": tuned.is_inside,
        "moves": tuned.moves,
        "seeds": ends,
    }


def f1_of(workdir: Path) -> float:
    """What a run ends with; 0 of one that is lost."""
    return final(workdir).get("f1", 100 - training.LOST)


def final(workdir: Path) -> dict[str, Any]:
    """The last record of a finished run."""
    record = folders.final_record(workdir)
    assert record is not None
    return record


def ending(workdir: Path) -> dict[str, Any]:
    """The scores of a run on the test articles, whole and by article."""
    record, articles = final(workdir), read_part("test")
    if record["status"] == "diverged":
        return lost(len(articles))
    answers = json_files.read_object(workdir / folders.PREDICTIONS_FILE)
    losses = [
        seen["loss"]
        for seen in reading.read_records(workdir / folders.METRICS_FILE).records
        if seen["kind"] == "train"
    ]
    return {
        "exact_match": record["exact_match"],
        "f1": record["f1"],
        "loss": record["loss"],
        "exact_spans": record["accuracy"],
        "train_loss": losses[-1],
        "encoder": record["data"].get("encoder_sha256", ""),
        "by_article": by_article(articles, answers),
    }


def lost(articles: int) -> dict[str, Any]:
    """The same of a run whose loss was not finite, which has no answers."""
    return {
        "exact_match": 0.0,
        "f1": 0.0,
        "loss": training.LOST,
        "exact_spans": 0.0,
        "train_loss": training.LOST,
        "encoder": "",
        "by_article": {name: [0.0] * articles for name in squad_tables.SCORES},
    }


def by_article(
    articles: Sequence[Article], answers: dict[str, str]
) -> dict[str, list[float]]:
    """Both scores of each article."""
    scores = [
        squad_answers.evaluate(article, [answers[example.id] for example in article])
        for article in articles
    ]
    return {
        name: study.rounded([score[name] for score in scores])
        for name in squad_tables.SCORES
    }


def guess(data: Path) -> dict[str, Any]:
    """What is right without a model, and how large the parts are."""
    parts = write_parts(data)
    found = squad_guesses.all_of(parts["train"], parts["test"])
    return {
        "questions": {name: sum(map(len, part)) for name, part in parts.items()},
        **found,
    }


def cells(scale: str, data: Path) -> list[Cell]:
    """The same at each scale."""
    del scale
    about = {
        "pretraining_steps": PRETRAINING_STEPS,
        "steps": STEPS,
        "seeds": len(PROTOCOL.fresh_seeds),
    }
    return [
        Cell({"what": squad_tables.GUESSES}, functools.partial(guess, data)),
        Cell(
            {"what": squad_tables.PRETRAINING, "steps": PRETRAINING_STEPS},
            functools.partial(pretrain, data),
        ),
        *(
            Cell(
                {"optimizer": name, "start": start} | about,
                functools.partial(measure, name, start, data),
            )
            for name, start in ARMS
        ),
    ]


STUDY = Study(cells, squad_tables.tables, lambda records: {})
