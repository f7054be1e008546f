import errno
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments import tasks
from experiments.common.errors import UserError
from experiments.configs import squad as squad_config
from experiments.data import squad, squad_windows, stream, text, tokenizer
from experiments.models import bert
from experiments.tasks import squad as task
from experiments.tasks import squad_answers
from experiments.training import trainer
from experiments.training.job import Job

SIZES = {"num_layers": 1, "width": 32, "num_heads": 2, "mlp_width": 64}


def embedded():
    dataset = squad.load("embedded", "", 0)
    return dataset.train + dataset.validation


def make_windows(row_length, stride, vocab_size=300):
    examples = embedded()
    texts = [example.context for example in examples]
    texts += [example.question for example in examples]
    return squad_windows.build(
        text.train_tokenizer(texts, vocab_size),
        examples,
        row_length=row_length,
        question_length=24,
        stride=stride,
    )


@pytest.fixture(scope="module")
def windows():
    return make_windows(row_length=64, stride=12)


def score_of(windows, logits):
    """Scores what logits (2, rows, length) say, by batches as the trainer does."""
    found = []
    for batch in task.validation_batches(windows, 16):
        rows = slice(16 * len(found), 16 * len(found) + 16)
        choice = batch["may_begin"], batch["may_end"]
        both = [jnp.asarray(jnp.resize(part[rows], (16, 64))) for part in logits]
        found.append(squad_answers.best_spans(*both, *choice, n_best=5, longest=30))
    rows = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
    return task.score(windows, rows)


def true_logits(windows):
    rows = [windows.row(i) for i in range(len(windows))]
    places = np.array([[row["first"], row["last"]] for row in rows]).T
    return np.eye(64, dtype=np.float32)[places]


def test_oracle_answers_every_question(windows):
    assert len(windows) > 2 * len(windows.examples)
    assert len(windows) % 16  # filler rows are among them
    assert windows.num_widened() == 0
    logits = true_logits(windows)
    assert score_of(windows, logits) == {"exact_match": 100, "f1": 100}
    # Noise half as large changes nothing; without the truth little is left.
    noise = np.random.default_rng(0).random(logits.shape, np.float32)
    assert score_of(windows, logits + noise / 2)["exact_match"] == 100
    assert score_of(windows, noise)["exact_match"] < 20


@pytest.fixture(scope="module")
def book():
    """The embedded questions, a window each, as one batch with filler."""
    windows = make_windows(row_length=128, stride=48)
    (batch,) = task.validation_batches(windows, 16)
    assert batch["weights"].sum() == len(windows) == 14
    return windows, batch


def functions(dropout=0.0):
    model = bert.BertConfig(300, 128, **SIZES, dropout=dropout, init_stddev=0.1)
    return {
        name: jax.jit(function)
        for name, function in task.model_functions(model, n_best=5, longest=30).items()
    }


@pytest.fixture(scope="module")
def model():
    return functions()


@pytest.mark.nightly
def test_tiny_bert_learns_the_embedded_questions_by_heart(book, model):
    windows, batch = book
    steps = 120
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, steps))

    @jax.jit
    def step(carry):
        params, opt_state = carry

        def loss(params):
            total, _ = model["loss_sum"](params, {}, batch, jax.random.key(1))
            return total / model["weight"](batch)

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    params, _ = model["init"](jax.random.key(0))
    carry = (params, optimizer.init(params))
    for _ in range(steps):
        carry, value = step(carry)
    assert value < 0.1
    found = model["predict"](carry[0], {}, batch)
    found = jax.tree.map(np.asarray, found)
    assert task.score(windows, found) == {"exact_match": 100, "f1": 100}
    sums = model["eval_sums"](carry[0], {}, batch)
    assert sums["accuracy"] == sums["weight"] == len(windows)


def test_loss_is_the_mean_of_both_ends_and_leaves_filler_out(book, model):
    windows, batch = book
    params, state = model["init"](jax.random.key(0))
    assert model["weight"](batch) == len(windows)
    total, after = model["loss_sum"](params, state, batch, jax.random.key(1))
    assert after == state == {}

    @jax.jit
    def logits(params):
        config = bert.BertConfig(300, 128, **SIZES)
        answering = bert.BertForQuestionAnswering(config, rngs=nnx.Rngs(0))
        nnx.update(answering, params)
        tokens = jnp.asarray(batch["tokens"])
        return answering(tokens, tokens != text.PAD, jnp.asarray(batch["token_types"]))

    expected = 0.0
    for ends, name in zip(logits(params), ("first", "last"), strict=True):
        for row in range(len(windows)):
            chances = np.exp(np.asarray(ends[row], np.float64))
            expected -= np.log(chances[batch[name][row]] / chances.sum()) / 2
    # float32 sums of 128 exponentials in each of 28 terms.
    assert float(total) == pytest.approx(expected, rel=1e-5)
    sums = model["eval_sums"](params, state, batch)
    assert float(sums["loss"]) == pytest.approx(expected, rel=1e-5)
    assert sums["weight"] == len(windows)


def test_model_reads_token_types_and_drops_out_by_key(book, model):
    _, batch = book
    params, state = model["init"](jax.random.key(0))
    loss_sum = functions(dropout=0.1)["loss_sum"]

    def loss(batch, seed=0):
        return float(loss_sum(params, state, batch, jax.random.key(seed))[0])

    assert loss(batch) == loss(batch) != loss(batch, seed=1)
    types = np.zeros_like(batch["token_types"])
    assert loss({**batch, "token_types": types}) != loss(batch)


def test_training_rows_depend_on_seed_and_position_alone(windows):
    def batch(seed, position):
        examples = task.train_examples(windows, seed)
        return next(stream.batches(examples, 8, position))["tokens"]

    examples = stream.batches(task.train_examples(windows, 0), 8, 0)
    several = [next(examples)["tokens"] for _ in range(4)]
    np.testing.assert_array_equal(several[3], batch(0, 3))
    assert not np.array_equal(batch(0, 3), batch(1, 3))
    epoch = stream.batches(task.train_examples(windows, 0), len(windows), 0)
    rows = sorted(row.tolist() for row in next(epoch)["tokens"])
    every = (windows.row(i)["tokens"].tolist() for i in range(len(windows)))
    assert rows == sorted(every)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, "config.data.path=: must name a SQuAD v1.1 JSON file"),
        ({"stride": 0}, r"config.data.stride=0: must be an integer in \[1, "),
        ({"answer_length": 0}, r"answer_length=0: must be an integer in \[1, "),
        ({"question_length": 61}, "sequence_length=64: must be 65 or more"),
        (
            {"n_best": 65},
            "n_best=65: must be at most config.data.sequence_length=64",
        ),
        ({"n_best": 0}, "config.data.n_best=0"),
        ({"split_seed": -1}, r"config.data.split_seed=-1: must be an integer in \[0, "),
        ({"vocab_size": 5}, r"config.data.vocab_size=5: must be an integer in \[6, "),
        ({"pretrained": "nowhere"}, "nowhere/config.json: No such file"),
    ],
)
def test_bad_config_is_refused(changes, message):
    config = squad_config.get_config("smoke")
    config.data.update(changes)
    with pytest.raises(UserError, match=message):
        tasks.load(Job.of(config).config)


def test_full_config_needs_a_file():
    with pytest.raises(UserError, match=r"config.data.path=: must name a SQuAD v1.1"):
        tasks.load(squad_config.get_config())


def test_a_tokenizer_that_finds_no_room_is_one_line(tmp_path, monkeypatch):
    def full_disk(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    tokens = text.train_tokenizer(["some text"], 60)
    with pytest.raises(UserError, match="No space left on device"):
        tokenizer.save(tokens, tmp_path)
    assert not (tmp_path / tokenizer.FILE).exists()


@pytest.fixture(scope="module")
def finished_mlm(tmp_path_factory):
    """What a run of task mlm leaves: its config, tokenizer and parameters."""
    folder = tmp_path_factory.mktemp("mlm")
    tokens = text.train_tokenizer(["some other text, with its own words"], 60)
    tokenizer.save(tokens, folder)
    config = {"task": "mlm", "model": {**SIZES, "dropout": 0.1}}
    (folder / "config.json").write_text(json.dumps(config))
    model = bert.BertConfig(tokens.get_vocab_size(), 96, **SIZES)
    shapes = nnx.eval_shape(lambda: bert.BertForMaskedLM(model, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.random(leaf.shape, np.float32)),
        nnx.to_pure_dict(nnx.state(shapes)),
    )
    trainer.save_params(folder / "params", params)
    return folder, tokens, params


def config_from(folder, **sizes):
    config = squad_config.get_config("smoke")
    config.data.pretrained = str(folder)
    config.model.update({**SIZES, **sizes})
    return config


def test_encoder_and_tokenizer_come_from_the_pretrained_run(finished_mlm, tmp_path):
    folder, tokens, theirs = finished_mlm
    built = tasks.load(config_from(folder)).build(tmp_path)
    params, _ = jax.jit(built.init)(jax.random.key(0))
    assert jax.tree.structure(params["encoder"]) == jax.tree.structure(
        theirs["encoder"]
    )
    for here, there in zip(
        jax.tree.leaves(params["encoder"]),
        jax.tree.leaves(theirs["encoder"]),
        strict=True,
    ):
        np.testing.assert_array_equal(here, there)
    assert set(params) == {"encoder", "head"}
    assert np.asarray(params["head"]["kernel"]).std() > 0
    built.save_assets(tmp_path)
    assert tokenizer.read(tmp_path / tokenizer.FILE).to_str() == tokens.to_str()
    assert built.description["encoder"] == str(folder)


def test_other_sizes_than_the_pretrained_ones_are_named(finished_mlm):
    folder, _, _ = finished_mlm
    with pytest.raises(
        UserError,
        match=r"another model: config.model.num_layers=3 here, 1 there; "
        r"config.model.width=48 here, 32 there$",
    ):
        tasks.load(config_from(folder, num_layers=3, width=48))
    config = config_from(folder)
    config.data.sequence_length = 128
    with pytest.raises(UserError, match="sequence_length=128: must be at most 96, the"):
        tasks.load(config)


def copy_of(folder, to, leave_out=()):
    for path in folder.iterdir():
        if path.name not in leave_out:
            (to / path.name).symlink_to(path)
    return to


def test_folders_that_are_no_finished_mlm_run_are_refused(finished_mlm, tmp_path):
    folder, _, params = finished_mlm
    cases = {
        "params": "has no params; a finished run is needed",
        "tokenizer.json": "the tokenizer of a run is needed",
        "config.json": "config.json: No such file",
    }
    for name, message in cases.items():
        (tmp_path / name).mkdir()
        broken = copy_of(folder, tmp_path / name, leave_out=[name])
        with pytest.raises(UserError, match=message):
            tasks.load(config_from(broken))
    other = tmp_path / "other"
    other.mkdir()
    copy_of(folder, other, leave_out=["config.json", "params"])
    (other / "config.json").write_text('{"task": "digits"}')
    with pytest.raises(UserError, match="a run of task digits, not of mlm"):
        tasks.load(config_from(other))
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    (other / "params").mkdir()
    with pytest.raises(UserError, match="params: not saved parameters"):
        tasks.load(config_from(other))
    (other / "params").rmdir()
    cut = jax.tree.map(lambda x: x[..., :-1], params)
    trainer.save_params(other / "params", cut)
    with pytest.raises(UserError, match=r"encoder/embeddings/.* there, .* is needed"):
        tasks.load(config_from(other))
