"""Studies of networks on data that the project does not have: on made-up files."""

import dataclasses
import hashlib
import io
import tarfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import optax_heavytail as oht
from experiments.common.errors import UserError
from experiments.data import text
from experiments.studies import (
    bert,
    cifar,
    datasets,
    lambc,
    states_bert,
    tuning,
    wikitext,
)


@pytest.fixture
def put(tmp_path, monkeypatch):
    """Writes a file of a data set, and has it count as the right one."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        monkeypatch.setitem(datasets.SHA256, name, hashlib.sha256(content).hexdigest())
        return path

    return write


def test_a_file_of_a_data_set_is_known_by_its_hash(put, tmp_path):
    path = put("wikitext2/test.txt", b"right")
    assert datasets.find(tmp_path, "wikitext2/test.txt") == path
    path.write_bytes(b"wrong")
    with pytest.raises(
        UserError, match=r"another file, of sha256 8810ad58.* not [0-9a-f]"
    ):
        datasets.find(tmp_path, "wikitext2/test.txt")
    with pytest.raises(UserError, match=r"No such file.*--data names the folder"):
        datasets.find(tmp_path, "wikitext2/valid.txt")


def article(number, words):
    return f" = Title {number} = \n \n {words} \n \n = = Part = = \n \n {words} \n"


def test_text_is_trained_on_one_file_and_judged_on_the_other(
    put, tmp_path, monkeypatch
):
    train = "".join(article(i, "one two three four " * 20) for i in range(8))
    put("wikitext2/test.txt", train.encode())
    held_out = "".join(article(i, "five six seven " * 20) for i in range(4))
    put("wikitext2/valid.txt", held_out.encode())
    monkeypatch.setattr(wikitext, "VALIDATION_ROWS", 5)
    model = dataclasses.replace(wikitext.MODEL, num_layers=0)
    monkeypatch.setattr(wikitext, "MODEL", model)
    problem = wikitext.problem(tmp_path, steps=3)
    rows, validation, baseline = wikitext.load(tmp_path)
    batches = problem.batches(1)
    assert batches["tokens"].shape == (3, wikitext.BATCH_SIZE, wikitext.LENGTH)
    assert len(validation["tokens"]) == 5
    again = problem.batches(1)
    jax.tree.map(np.testing.assert_array_equal, batches, again)
    assert np.any(problem.batches(2)["tokens"] != batches["tokens"])
    assert np.isfinite(baseline)
    # Each article is a document, of which a row holds one at most.
    articles = wikitext.ARTICLE.split(text.read(tmp_path / wikitext.PARTS[0]))
    articles = [article for article in articles if article.strip()]
    tokenizer = text.train_tokenizer(articles, wikitext.VOCABULARY)
    of_rows = [tokenizer.decode(row.tolist()) for row in rows]
    assert all(row.count("Title") <= 1 for row in of_rows)
    assert sum(row.count("Title") for row in of_rows) == 8
    # Nothing in the first file has the s and the v of "seven".
    assert text.UNK not in rows
    assert text.UNK in validation["tokens"]
    params, state = jax.jit(problem.init)(jax.random.key(0))
    loss, accuracy = jax.jit(problem.evaluate)(params, state, problem.data)
    # Logits of new weights are small: about as good as a guess.
    assert float(loss) == pytest.approx(np.log(wikitext.VOCABULARY), abs=0.5)
    assert 0 <= accuracy <= 0.5


def test_a_bert_is_trained_with_its_state_in_one_byte(monkeypatch):
    documents = tuple(f"one two three four {i} " * 20 for i in range(20))
    corpus = text.identified(documents, "made up")
    monkeypatch.setattr(text, "load_corpus", lambda path, separator: corpus)
    model = dataclasses.replace(wikitext.MODEL, num_layers=0)
    monkeypatch.setattr(wikitext, "MODEL", model)
    problem = states_bert.problem(2)
    monkeypatch.setattr(states_bert, "problem", lambda: problem)
    monkeypatch.setattr(states_bert, "SEEDS", (1, 2))
    found = states_bert.measure("AdamW", states_bert.BYTE)
    assert len(found["losses"]) == 2
    # Two steps from new weights, which know as much as a guess.
    assert all(3 < loss < np.log(wikitext.VOCABULARY) for loss in found["losses"])
    assert 2 < found["bytes"] < 4  # 8 in float32; small leaves stay as they are


def tar_of(number):
    """Images of two classes, each of one colour of its own."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        for part, blue in (("train", 0), ("test", 255)):
            for i in range(number):
                name = f"{part}/{'ab'[i % 2]}/{i:04}.jpg"
                picture = io.BytesIO()
                Image.new("RGB", (32, 32), (8 * i, 255 * (i % 2), blue)).save(
                    picture, "JPEG"
                )
                info = tarfile.TarInfo(name)
                info.size = picture.tell()
                picture.seek(0)
                tar.addfile(info, picture)
    return stream.getvalue()


def test_images_are_drawn_and_halved(put, tmp_path, monkeypatch):
    put(cifar.TAR, tar_of(20))
    monkeypatch.setattr(cifar, "TRAIN_IMAGES", 12)
    monkeypatch.setattr(cifar, "VALIDATION_IMAGES", 7)
    train, validation = cifar.load(tmp_path)
    assert train["images"].shape == (12, 16, 16, 3)
    assert len(validation["labels"]) == 7
    # The class is in the green, and the number of the image in the red.
    assert np.array_equal(train["images"][:, 0, 0, 1] > 127, train["labels"] == 1)
    assert len(np.unique(train["images"][:, 0, 0, 0])) == 12
    assert train["images"][..., 2].max() < 127 < validation["images"][..., 2].min()
    problem = cifar.problem(tmp_path, 5)
    assert problem.steps == cifar.EPOCHS * 12 // 5
    rows = problem.batches(3)
    assert rows.shape == (problem.steps, 5)
    assert np.any(rows.ravel()[:12] != rows.ravel()[12:24])  # an order of its own
    counts = np.bincount(rows.ravel(), minlength=12)
    assert counts.min() >= cifar.EPOCHS - 1
    assert counts.max() == cifar.EPOCHS


@pytest.mark.parametrize("study", [bert, lambc])
def test_contestants_are_optimizers(study):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    for name, contestant in study.CONTESTANTS.items():
        arguments = (0.1,)
        if contestant.threshold is not None:
            arguments += (1e-3,)
        tx = contestant.make(*arguments)
        grads = {"kernel": jnp.full((2, 3), 0.5), "bias": jnp.zeros(3)}
        updates, _ = tx.update(grads, tx.init(params), params)
        assert np.all(np.asarray(updates["kernel"]) < 0), name
        # Biases do not decay, but in the published form.
        if name != "acclip, literal":
            assert np.all(np.asarray(updates["bias"]) == 0), name


def test_ratios_are_those_of_kernels():
    params = {"kernel": jnp.full((2, 2), 4.0), "head": {"kernel": jnp.ones((2, 2))}}
    params["bias"] = jnp.full(2, 100.0)
    contestant = lambc.CONTESTANTS[lambc.UNBOUNDED]
    tx = contestant.make(0.1)
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(params), params)
    seen = contestant.observe(state)
    # Adam's step is 0.1 / sqrt(0.001) without bias correction, and decay adds 1%.
    adam = 0.1 / np.sqrt(0.001)
    ratios = 4 / (adam + 0.04), 1 / (adam + 0.01)
    assert seen["largest"] == pytest.approx(ratios[0], rel=1e-4)
    assert seen["smallest"] == pytest.approx(ratios[1], rel=1e-4)
    assert seen["median"] == pytest.approx(np.mean(ratios), rel=1e-4)


def test_bounds_alone_set_lambc_and_lamb_apart():
    """With a ratio below every bound all are the same."""
    params = {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.ones(2)}
    found = []
    for name, contestant in lambc.CONTESTANTS.items():
        if not name.startswith("lamb"):
            continue
        tx = contestant.make(0.1)
        grads = jax.tree.map(jnp.ones_like, params)
        updates, _ = tx.update(grads, tx.init(params), params)
        found.append(optax.apply_updates(params, updates)["kernel"])
    assert len(found) == 5
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_moments_restart():
    params = {"kernel": jnp.full((2, 2), 3.0)}
    grads = [jax.tree.map(lambda x, k=k: k * jnp.ones_like(x), params) for k in (1, 4)]
    adam = oht.scale_by_adam()
    tx = lambc.restarted(adam, 3)
    state, own = tx.init(params), adam.init(params)
    for step in range(7):
        if step in (3, 6):
            own = adam.init(params)
        updates, state = tx.update(grads[step % 2], state, params)
        expected, own = adam.update(grads[step % 2], own, params)
        chex.assert_trees_all_equal(updates, expected)
    assert state.count == 7


def test_an_attempt_changes_what_it_says():
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)

    def kernel_and_bias(contestant):
        tx = contestant.make(0.1)
        updates, _ = tx.update(grads, tx.init(params), params)
        return [float(updates[name].ravel()[0]) for name in ("kernel", "bias")]

    adam = 0.1 / np.sqrt(0.001)  # of the first step, without bias correction
    ratio = 3 / (adam + 0.03)
    plain = [-0.1 * ratio * (adam + 0.03), -0.1 / adam * adam]
    expected = {
        "a constant rate": plain,
        "moments restart every epoch": plain,
        "both of these": plain,
        "ratios of kernels alone": [plain[0], -0.1 * adam],
        "bias correction": [-0.3, -0.1],
    }
    assert set(expected) == set(lambc.ATTEMPTS)
    for name, pair in lambc.ATTEMPTS.items():
        assert set(pair) == {lambc.BOUNDED, lambc.UNBOUNDED}
        found = kernel_and_bias(pair[lambc.UNBOUNDED])
        assert found == pytest.approx(expected[name], rel=1e-4), name
        factors = [pair[lambc.BOUNDED].schedule(100)(count) for count in (0, 50, 99)]
        assert (factors == [1.0] * 3) == (name in ("a constant rate", "both of these"))
    bounded = kernel_and_bias(lambc.ATTEMPTS["bias correction"][lambc.BOUNDED])
    assert bounded == pytest.approx([-0.1 * 1.03, -0.1], rel=1e-4)


def test_a_grid_is_as_large_for_all():
    for study, protocol in ((bert, wikitext.PROTOCOL), (lambc, cifar.PROTOCOL)):
        for contestant in study.CONTESTANTS.values():
            grid = tuning.points(*tuning.grid(contestant, protocol))
            assert len(grid) == protocol.points
