"""The command that diagnoses a model: what it measures, writes and refuses."""

import itertools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import diagnose, tasks
from experiments.common.errors import UserError
from experiments.diagnosis import (
    curvature_figures,
    noise,
    noise_figures,
    noise_page,
    points,
)
from experiments.diagnosis.curvature import Curvature
from experiments.training import checkpoint_files, programs
from experiments.training.job import Job
from optax_heavytail import diagnostics
from tests import toy_task
from tests.commands import exit_code, refused
from tests.test_report import Page
from tests.toy_runs import go, toy

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

BATCHES = 120


@pytest.fixture(scope="module", autouse=True)
def _toy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "toy", lambda config: toy_task.source())
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 12 steps, with the checkpoints of steps 8 and 12."""
    workdir = tmp_path_factory.mktemp("run")
    go(toy(), workdir)
    return workdir


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """The diagnosis of three points of the run."""
    workdir = tmp_path_factory.mktemp("diagnosis")
    said = noise.diagnose(
        toy(), workdir, str(run), ["12", "0", "8"], num_batches=BATCHES
    )
    return workdir, said


def results_of(workdir):
    return json.loads((workdir / "diagnosis.json").read_text())


def page_of(workdir):
    return (workdir / "diagnosis.html").read_text(encoding="utf-8")


# What is measured


def toy_gradients(params, number):
    """Of the batches that come after the run's last step, two microbatches each."""
    config, task = toy(), toy_task.make()
    key = jax.random.key(config.seed)
    first = 2 * config.steps

    @jax.jit
    def gradient(params, batch, key):
        def loss(params):
            return task.loss_sum(params, {}, batch, key)[0] / task.weight(batch)

        return jax.grad(loss)(params)

    for index in range(number):
        number_key = jax.random.fold_in(key, np.uint32(index))
        total = []
        for part in range(2):
            batch = toy_task.batch(first + 2 * index + part)
            part_key = jax.random.fold_in(number_key, part)
            total.append(gradient(params, batch, part_key))
        yield jax.tree.map(lambda a, b: (a + b) / 2, *total)


def test_the_noise_is_that_of_the_batches_after_the_run(run, written):
    arrays = checkpoint_arrays(run / "checkpoints" / "12")
    params = {"kernel": arrays["kernel"], "bias": arrays["bias"]}
    gradients = [
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
        for g in toy_gradients({"dense": params}, BATCHES)
    ]
    expected = np.sqrt(np.sum(np.var(gradients, axis=0, ddof=1)))
    point = results_of(written[0])["points"][-1]
    assert point["step"] == 12
    # Gradients in float32.
    assert point["whole"]["noise"] == pytest.approx(expected, rel=1e-5)
    norm = np.linalg.norm(np.mean(gradients, axis=0))
    assert point["whole"]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def checkpoint_arrays(folder):
    from tests.toy_runs import read

    arrays = read(folder / "arrays")
    return {
        name: jnp.asarray(arrays[f"state/params/dense/{name}"])
        for name in ("kernel", "bias")
    }


def test_the_points_are_in_the_order_of_their_steps(written):
    points_ = results_of(written[0])["points"]
    assert [point["step"] for point in points_] == [0, 8, 12]
    assert len({point["whole"]["gradient_norm"] for point in points_}) == 3
    for point in points_:
        assert [layer["name"] for layer in point["layers"]] == [
            "dense/bias",
            "dense/kernel",
        ]
        assert point["num_batches"] == BATCHES


@pytest.mark.nightly
def test_the_curvature_is_that_of_the_quadratic_loss(written):
    """Half of the Hessian is the second moments of x and 1, on 9 of 10 targets."""
    task = toy_task.make()
    batches = [toy_task.batch(24 + i) for i in range(4)]

    def loss(vector):
        params = {"dense": {"bias": vector[:2], "kernel": vector[2:].reshape(3, 2)}}
        found = []
        for i, batch in enumerate(batches):
            key = jax.random.fold_in(jax.random.key(0), i)
            found.append(task.loss_sum(params, {}, batch, key)[0])
        return sum(found) / sum(task.weight(batch) for batch in batches)

    exact = np.linalg.eigvalsh(jax.hessian(loss)(jnp.zeros(8)))
    for point in results_of(written[0])["points"]:
        spectrum = point["curvature"]["spectrum"]
        assert spectrum["largest"] == pytest.approx(exact[-1], rel=1e-4)
        assert spectrum["smallest"] == pytest.approx(exact[0], rel=1e-3)
        for step in point["curvature"]["smoothness"]:
            assert exact[0] * 0.99 < step["smoothness"] < exact[-1] * 1.01
    assert results_of(written[0])["smoothness_fit"]["num_points"] == 48


# What is written


def test_the_command_says_its_verdict_and_where_the_page_is(written):
    workdir, said = written
    last = results_of(workdir)["points"][-1]
    assert said.startswith(last["verdict"])
    assert last["recommendation"]["text"] in said
    assert said.endswith(str(workdir / "diagnosis.html"))


def test_the_page_needs_no_other_file(written):
    html = page_of(written[0])
    page = Page(html)
    for _, attributes in page.tags:
        for name in ("href", "src"):
            assert attributes.get(name, "#").startswith("#")
    assert "http" not in html
    assert "<script" not in html
    identifiers = re.findall(r'\bid="([^"]+)"', html)
    assert len(identifiers) == len(set(identifiers))


def test_the_page_has_every_part(written):
    page = Page(page_of(written[0]))
    text = "".join(page.texts)
    last = results_of(written[0])["points"][-1]
    for part in (
        last["verdict"],
        last["recommendation"]["text"],
        last["whole"]["verdict"]["change"],
        "Norms of the noise",
        "QQ plot",
        "Survival on log axes",
        "Empirical variance",
        "Hill plot",
        "by layer",
        "in the course of training",
        "Spectral density",
        "Smoothness along",
        "Extreme Hessian eigenvalues",
        "characteristic function, across iterations",
        "dense/kernel",
        f"{BATCHES} of 16 rows",
    ):
        assert part in text, part
    assert f"k = {last['whole']['norms']['hill']['k']} is used" in text


def heavy(name="layer"):
    rng = np.random.default_rng(0)
    batches = [
        {name: (rng.pareto(1.0) + 1) * x} for x in rng.normal(size=(BATCHES, 120))
    ]

    def grad_fn(params, batch):
        return {k: params + x for k, x in batch.items()}

    return diagnostics.diagnose(grad_fn, 0.5, batches)


CONFIG = {"report": {"model": "Toy"}, "model": {"width": 3}}


def test_a_page_of_heavy_noise_has_the_code_to_paste():
    found = heavy("<b>")
    html = noise_page.render(CONFIG, [(0, found)], {"data": "<i>"})
    page = Page(html)
    assert found.recommendation.code in page.texts
    assert "before training" in html
    assert "<b>" in page.texts
    assert ("b", {}) not in page.tags
    assert ("i", {}) not in page.tags
    assert "course of training" not in html


def test_a_page_without_any_estimate_gives_the_reasons():
    batches = [{"a": np.ones(3), "b": np.full(3, float(i))} for i in range(12)]
    batches[5]["b"][0] = np.nan
    found = diagnostics.diagnose(lambda w, x: x, None, batches)
    html = noise_page.render(CONFIG, [(7, found)], {})
    text = "".join(Page(html).texts)
    assert "1 of 12 batches have an inf or NaN" in text
    assert "constant: the gradient is the same for every batch" in text
    assert "skip_if_unsafe" in text
    assert "<svg" not in html


def test_a_picture_that_fails_loses_no_result(run, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(noise_page, "render", broken)
    with pytest.raises(RuntimeError, match="no ink"):
        noise.diagnose(toy(), tmp_path, str(run), num_batches=2, with_curvature=False)
    assert results_of(tmp_path)["points"][0]["step"] == 12
    assert not (tmp_path / "diagnosis.html").exists()


def test_too_few_batches_give_a_page_with_the_reason(run, tmp_path):
    noise.diagnose(toy(), tmp_path, str(run), num_batches=20, with_curvature=False)
    text = "".join(Page(page_of(tmp_path)).texts)
    assert "20 samples are too few: at least 100 are needed" in text
    (point,) = results_of(tmp_path)["points"]
    assert point["step"] == 12
    assert point["curvature"] is None
    assert point["whole"]["norms"]["hill"]["index"] is None


def test_a_hessian_that_is_not_finite_is_no_picture():
    nodes = [[float("nan")] * 3]
    spectrum = dict.fromkeys(("nodes", "weights", "errors"), nodes)
    ends = ("smallest", "largest", "smallest_error", "largest_error")
    spectrum |= dict.fromkeys(ends, float("nan"))
    smoothness = [{"gradient_norm": float("nan"), "smoothness": 1.0}] * 12
    bad = Curvature(smoothness, spectrum)
    drawn = curvature_figures.pictures([(0, bad)])
    assert drawn == []
    json.dumps(bad.to_json(), allow_nan=False)


def test_gradients_are_the_same_each_time_and_differ_between_batches(run):
    job = Job.of(toy()).on(toy_task.source())
    built = programs.build(job, toy_task.make())
    batches = points.Batches(built, 3)
    state = built.init_state()
    grad_fn = points.gradients(built, 0)(state)
    once, again = (
        [jax.device_get(grad_fn(state.params, batch)) for batch in batches]
        for _ in range(2)
    )
    for one, other in zip(once, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    for one, other in itertools.combinations(once, 2):
        assert not np.allclose(one["dense"]["bias"], other["dense"]["bias"])


# What is refused


def test_a_checkpoint_of_another_config_is_refused_by_its_fields(run, tmp_path):
    config = toy(optimizer="adamw", batch_size=32)
    with pytest.raises(UserError) as caught:
        noise.diagnose(config, tmp_path, str(run), num_batches=2)
    message = str(caught.value)
    assert "is of another config than --config" in message
    assert "config.batch_size was 16, now 32" in message
    assert "config.optimizer.name was acclip, now adamw" in message
    assert not list(tmp_path.iterdir())


def test_how_a_run_was_spread_is_no_other_config(run, tmp_path):
    config = toy(checkpoint={"every": 1, "keep": 9}, parallel="shard_map")
    assert noise.diagnose(
        config, tmp_path, str(run), num_batches=2, with_curvature=False
    )


def test_one_checkpoint_can_be_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    folder = f"{run.name}/checkpoints/8"
    noise.diagnose(toy(), tmp_path, folder, num_batches=2, with_curvature=False)
    assert [point["step"] for point in results_of(tmp_path)["points"]] == [8]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["3"], "3 is not there; must be all, or of 0, 8, 12"),
        (["8", "last"], "last is not there"),
    ],
)
def test_steps_that_are_not_there_are_refused(run, steps, words):
    with pytest.raises(UserError, match=words):
        points.places(str(run), steps)


def test_all_steps_are_the_new_model_and_the_checkpoints(run):
    assert [place.step for place in points.places(str(run), ["all"])] == [0, 8, 12]
    assert [place.step for place in points.places(str(run), [])] == [12]


def test_steps_need_a_run(run, tmp_path):
    with pytest.raises(UserError, match="--checkpoint must name the run's folder"):
        points.places(None, ["0"])
    with pytest.raises(UserError, match="is one checkpoint"):
        points.places(str(run / "checkpoints" / "8"), ["8"])
    with pytest.raises(UserError, match="has no checkpoint; a run's folder"):
        points.places(str(tmp_path), [])


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    about = copy / "checkpoints" / "12" / checkpoint_files.ABOUT / "metadata"
    about.write_text(about.read_text().replace('"step": 12', '"step": 13'))
    with pytest.raises(UserError, match=r"12 is damaged .*; choose another"):
        noise.diagnose(toy(), tmp_path / "out", str(copy), num_batches=2)


def flags_of(workdir, *others):
    return [
        "--config=experiments/configs/bert_tiny.py:smoke",
        f"--workdir={workdir}",
        "--config.task=toy",
        "--config.num_devices=1",
        *others,
    ]


def test_the_command_diagnoses_a_new_model(tmp_path, capsys):
    flags = flags_of(tmp_path, "--batches=4", "--nocurvature")
    assert exit_code(diagnose.main, *flags) is None
    said = capsys.readouterr().out
    assert "diagnose" in said
    assert "layers" in said
    assert str(tmp_path / "diagnosis.html") in said
    assert results_of(tmp_path)["points"][0]["step"] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batches=1"], "batches"),
        (["--steps=4"], "--steps=4: --checkpoint must name"),
        (["--checkpoint=no/such/run"], "no/such/run has no checkpoint"),
    ],
)
def test_bad_flags_are_refused_in_one_line(tmp_path, flags, words):
    assert words in refused(diagnose.main, *flags_of(tmp_path, *flags))
    assert not list(tmp_path.iterdir())


def test_a_histogram_has_no_more_bars_than_a_picture_shows():
    rng = np.random.default_rng(0)
    norms = np.where(rng.random(400) < 0.1, rng.random(400), 1e-11 * rng.random(400))
    assert noise_figures._num_bins(norms) == noise_figures._MOST_BINS
    assert noise_figures._num_bins(np.ones(50)) == 1
    assert 5 < noise_figures._num_bins(rng.normal(size=500)) < 50


def test_the_new_model_of_another_run_is_refused_too(run, tmp_path):
    with pytest.raises(UserError, match=r"config.seed was \d+, now 77"):
        noise.diagnose(toy(seed=77), tmp_path / "page", str(run), ["0"])
