"""Following a training: what is measured, where, and what an interruption leaves."""

import json
import math
import shutil

import jax
import jax.flatten_util
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from experiments import follow
from experiments.common import json_files
from experiments.common.errors import UserError
from experiments.diagnosis import following, trajectory, trajectory_figures
from experiments.diagnosis.following import Settings
from experiments.training import programs, trainer
from experiments.training.job import Job
from tests import toy_task
from tests.commands import refused
from tests.in_time import only
from tests.toy_runs import assert_same, go, read, toy

pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")
SETTINGS = Settings(spectra=3, points=4, loss_batches=2, lanczos_steps=8)


@pytest.fixture(scope="module")
def built():
    config = Job.of(toy("momentum")).on(toy_task.source())
    return config, programs.build(config, toy_task.make())


def dense(built, params):
    """Gradient and Hessian of the loss that the instruments look at."""
    _, made = built
    first = made.plan.position(made.plan.num_steps)
    batches = [toy_task.batch(first + i) for i in range(2)]
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def loss(flat):
        sums = [
            made.task.loss_sum(
                unravel(flat), {}, batch, jax.random.fold_in(jax.random.key(0), i)
            )[0]
            for i, batch in enumerate(batches)
        ]
        return sum(sums) / sum(made.task.weight(batch) for batch in batches)

    return jax.grad(loss)(flat), jax.hessian(loss)(flat)


@pytest.mark.nightly
def test_instruments_agree_with_the_dense_hessian(built):
    tools = trajectory.Instruments(built[1], batches=2, lanczos_steps=8)
    params = built[1].init_state().params
    gradient, hessian = dense(built, params)
    spectrum = tools.spectrum(params, {})
    values = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(spectrum["nodes"][0], values, atol=1e-5)
    assert spectrum["smallest"] == pytest.approx(values[0], abs=1e-5)
    assert spectrum["largest"] == pytest.approx(values[-1], abs=1e-5)

    update = jax.tree.map(lambda x: 0.1 * jnp.cos(x), params)
    flat, _ = jax.flatten_util.ravel_pytree(update)
    found = tools.smoothness(params, {}, update)
    length = np.linalg.norm(flat)
    wanted = np.linalg.norm(hessian @ flat) / length  # everywhere on a quadratic
    assert found["smoothness"] == pytest.approx(wanted, rel=1e-4)
    assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)
    assert found["update_norm"] == pytest.approx(length, rel=1e-5)
    short = jax.tree.map(lambda x: 1e-7 * x, params)
    assert math.isnan(tools.smoothness(params, {}, short)["smoothness"])


@pytest.mark.parametrize("mode", only({"jit"}, ["jit", "pmap"]))
def test_it_is_the_training_of_the_trainer(mode, tmp_path):
    config = toy("momentum", parallel=mode, num_devices=2)
    _, made = go(config, tmp_path)
    resolved = Job.of(config).on(toy_task.source())
    points = trajectory.follow(resolved, made, made.init_state(), [0, 12], [1, 2, 11])
    at = {}
    for step, params, _, update in points:
        assert (update is None) == (step in (0, 12))
        at[step] = jax.tree.map(np.array, (params, update))
    assert list(at) == [0, 1, 2, 11, 12]
    assert_same(at[12][0]["dense"], read(tmp_path / "params")["dense"])
    for step in (1, 11):
        after = jax.tree.map(np.add, *at[step])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            after,
            at[step + 1][0],
        )


def measured(workdir, monkeypatch, source=None, settings=SETTINGS, **changes):
    monkeypatch.setattr(
        trainer.tasks, "load", lambda config: source or toy_task.source()
    )
    return following.measure(toy("momentum", **changes), workdir, settings)


def lines(workdir):
    text = (workdir / following.RECORDS_FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def without_times(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records[1:]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("followed")
    with pytest.MonkeyPatch.context() as patch:
        return workdir, measured(workdir, patch)


def test_everything_that_is_wanted_is_measured(finished):
    workdir, records = finished
    assert records == lines(workdir)
    assert records[0]["settings"] == SETTINGS._asdict()
    measurements = [(r["kind"], r["step"]) for r in records[1:]]
    assert sorted(measurements) == [
        *[("smoothness", step) for step in (1, 2, 5, 11)],
        *[("spectrum", step) for step in (0, 3, 12)],
    ]


@pytest.mark.nightly
def test_an_interrupted_measurement_is_completed(
    finished, tmp_path, monkeypatch, capsys
):
    workdir, records = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    path = tmp_path / following.RECORDS_FILE
    kept = path.read_text().splitlines(keepends=True)[:5]
    path.write_text("".join(kept))
    again = measured(tmp_path, monkeypatch)
    assert without_times(again) == without_times(records)
    assert "3/3" in capsys.readouterr().out
    assert measured(tmp_path, monkeypatch) == again
    assert not capsys.readouterr().out


def test_other_measurements_are_refused(finished, tmp_path, monkeypatch):
    workdir, records = finished
    with pytest.raises(UserError, match=r"'points': 4.*not.*'points': 5"):
        measured(workdir, monkeypatch, settings=SETTINGS._replace(points=5))
    with pytest.raises(UserError, match=r"config\.seed was 0, now 1"):
        measured(workdir, monkeypatch, seed=1)
    assert lines(workdir) == records
    (tmp_path / following.RECORDS_FILE).write_text("[1]\n")
    with pytest.raises(UserError, match=r"curvature.jsonl:1: a JSON object is needed"):
        following.measurements(tmp_path / following.RECORDS_FILE, SETTINGS)
    (tmp_path / following.RECORDS_FILE).write_text(
        '{"kind": "smoothness", "step": 1, "gradient_norm": 1, "smoothness": null}\n'
    )
    with pytest.raises(UserError, match="has measurements with None"):
        following.measurements(tmp_path / following.RECORDS_FILE, SETTINGS)


def test_more_products_than_parameters_are_refused(built):
    many = SETTINGS._replace(lanczos_steps=9)
    with pytest.raises(UserError, match="must be at most 8, the number of parameters"):
        following._check_size(built[1], many)


def test_a_training_that_diverges_leaves_its_records(tmp_path, monkeypatch):
    source = toy_task.source(poisoned_step=8)  # microbatch 8 is in step 4
    with pytest.raises(UserError, match="non-finite loss at step 4"):
        measured(tmp_path, monkeypatch, source)
    assert [r["step"] for r in lines(tmp_path)[1:]] == [0, 1, 2, 3]


def test_a_number_that_is_not_finite_is_none():
    record = json_files.finite(
        {"kind": "smoothness", "smoothness": math.nan, "gradient_norm": 2.0}
    )
    assert (record["smoothness"], record["gradient_norm"]) == (None, 2.0)
    assert trajectory.fit([record]).reason == "0 points, and a fit needs 10"


@pytest.mark.parametrize("num_steps", [1, 2, 3, 2500])
def test_steps_are_steps_of_the_run(num_steps):
    settings = Settings(6, 80, 1, 1)
    spectra = settings.spectrum_steps(num_steps)
    assert (spectra[0], spectra[-1]) == (0, num_steps)
    updates = settings.smoothness_steps(num_steps)
    assert updates == sorted(set(updates))
    assert all(1 <= step < num_steps for step in updates)
    if num_steps == 2500:
        assert len(spectra) == 6
        assert 70 < len(updates) <= 80


def records_of(smooth):
    norms = np.geomspace(0.1, 10, len(smooth))
    return [
        {
            "kind": "smoothness",
            "step": i + 1,
            "gradient_norm": g,
            "smoothness": float(s),
        }
        for i, (g, s) in enumerate(zip(norms, smooth, strict=True))
    ]


@pytest.mark.parametrize(
    ("smooth", "verdict"),
    [
        (np.linspace(1, 2, 40), "the smoothness rises with the gradient norm"),
        (np.linspace(2, 1, 40), "the smoothness falls where the gradient norm rises"),
        (np.tile([1.0, 2.0], 20), "no sign that the smoothness depends"),
        (np.ones(3), "no (L0, L1) fit: 3 points, and a fit needs 10"),
    ],
)
def test_a_fit_in_words(smooth, verdict):
    words = trajectory.in_words(trajectory.fit(records_of(smooth)))
    assert words.startswith(verdict)
    assert "\n" not in words


def test_pictures_show_the_records(tmp_path):
    spectra = [
        {
            "kind": "spectrum",
            "step": step,
            "smallest": -1.0 if step else 0.5,
            "largest": 2.0 + step,
            "smallest_error": 0.1,
            "largest_error": 0.1,
            "nodes": [[-1.0, 0.0, 2.0 + step]],
            "weights": [[0.1, 0.8, 0.1]],
            "errors": [[0.1, None, 0.1]],
        }
        for step in (0, 10, 20)
    ]
    records = [*records_of(np.linspace(1, 2, 20)), *spectra]
    records += [{**spectra[0], "step": 30, "smallest": None, "largest": None}]
    records += [{**records[0], "step": 21, "smoothness": None}]
    axes = matplotlib.figure.Figure().subplots()
    trajectory_figures.draw_course(axes, records)
    points, largest, smallest = (line.get_xydata() for line in axes.lines)
    assert len(points) == 20
    np.testing.assert_array_equal(largest, [[0, 2], [10, 12], [20, 22]])
    np.testing.assert_array_equal(smallest, [[10, 1], [20, 1]])  # one was above 0

    axes = matplotlib.figure.Figure().subplots()
    trajectory_figures.draw_densities(axes, records)
    assert [line.get_label() for line in axes.lines] == ["step 0", "step 10", "step 20"]
    x, y = axes.lines[-1].get_data()
    assert np.trapezoid(y, x) == pytest.approx(1, abs=1e-3)

    assert trajectory_figures.png(records, trajectory.fit(records)).startswith(
        b"\x89PNG"
    )
    few = records_of(np.ones(2))
    assert trajectory_figures.png(few, trajectory.fit(few)).startswith(b"\x89PNG")
    lost = [{**few[0], "smoothness": None}, {**few[1], "gradient_norm": None}]
    assert trajectory_figures.png(lost, trajectory.fit(lost)).startswith(b"\x89PNG")


def test_bad_flags_are_one_line(tmp_path):
    config = "--config=experiments/configs/bert_tiny.py:smoke"
    workdir = f"--workdir={tmp_path}"
    for flag in ("--spectra=1", "--points=0", "--loss_batches=0", "--lanczos_steps=x"):
        assert flag.split("=")[0].strip("-") in refused(
            follow.main, config, workdir, flag
        )
    assert not list(tmp_path.iterdir())
