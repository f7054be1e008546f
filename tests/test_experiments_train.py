import dataclasses
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import optax_heavytail as oht
from experiments import tasks
from experiments.common.errors import UserError
from experiments.configs import bert_tiny
from experiments.runs import folders
from experiments.training import plan, programs, steps, trainer
from experiments.training.job import Job
from tests import toy_task
from tests.in_time import only
from tests.toy_runs import TIMES, run_job


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def timeless(workdir):
    return [
        {k: v for k, v in record.items() if k not in TIMES}
        for record in records(workdir)
    ]


def by_kind(workdir, kind):
    return [record for record in records(workdir) if record["kind"] == kind]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A finished run of BERT on the embedded text, and its built."""
    config = bert_tiny.get_config("smoke")
    config.num_devices = config.model.num_layers = 1
    config.optimizer.name = "adamw"
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    source = tasks.load(config)
    final, built = run_job(config, workdir, source)
    return config, workdir, source, final, built


def test_run_leaves_everything_behind(smoke):
    config, workdir, source, final, built = smoke
    names = {path.name.split(".")[0] for path in workdir.iterdir()}
    assert names == {
        "config",
        "tokenizer",
        "metrics",
        "events",
        "params",
        "checkpoints",
    }
    written = json.loads((workdir / "config.json").read_text())
    assert written["optimizer"]["name"] == "adamw"
    assert written["optimizer"]["learning_rate"] == (
        config.optimizers.adamw.learning_rate
    )
    assert written["data"]["sha256"] == source.sha256
    kinds = [(record["kind"], record["step"]) for record in records(workdir)]
    expected = [("train", 1), ("eval", 1), ("train", 2), ("eval", 2), ("final", 2)]
    assert kinds == expected
    assert final == records(workdir)[-1]
    assert final["status"] == "complete"
    assert final["loss"] == by_kind(workdir, "eval")[-1]["loss"]
    assert 0 < final["baselines"]["token frequencies"] < math.log(256)
    assert final["data"]["sha256"] == source.sha256
    assert final["parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(built.init_state().params)
    )
    assert final["versions"]["jax"] == jax.__version__
    assert re.fullmatch(r"[0-9a-f]{10}(-dirty)?|unknown", final["versions"]["commit"])


def test_untrained_loss_is_near_the_uniform_one(smoke):
    _, workdir, *_, built = smoke
    uniform = math.log(built.task.description["vocabulary"])
    assert by_kind(workdir, "train")[0]["loss"] == pytest.approx(uniform, abs=0.5)


def test_saved_parameters_give_the_final_loss(smoke):
    _, workdir, _, final, built = smoke
    shapes = jax.eval_shape(built.init_state).params
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(workdir / "params", shapes)
    assert programs.evaluate(built, params, {})["loss"] == final["loss"]


@pytest.mark.nightly
def test_equal_configs_give_equal_metrics_whatever_was_compiled_before(smoke, tmp_path):
    config, workdir, source, _, built = smoke
    config = config.copy_and_resolve_references()
    config.optimizers.adamw.learning_rate *= 3
    run_job(config, tmp_path / "shared", source, built)
    run_job(config, tmp_path / "fresh", tasks.load(config))
    assert timeless(tmp_path / "shared") == timeless(tmp_path / "fresh")
    for kind in ("train", "eval"):
        slow, fast = by_kind(workdir, kind), by_kind(tmp_path / "fresh", kind)
        assert slow[1]["loss"] != fast[1]["loss"]


def test_optimizers_see_the_same_weights_and_batches(tmp_path):
    # A rate too small to change a weight leaves the differences to the data alone.
    losses = {}
    for name in ("acclip", "adamw", "gclip"):
        config = toy_task.config(name, steps=4)
        config.optimizers[name].learning_rate = 1e-30
        run_job(config, tmp_path / name, toy_task.source())
        losses[name] = [r["loss"] for r in by_kind(tmp_path / name, "train")]
    assert losses["acclip"] == losses["adamw"] == losses["gclip"]
    assert len(set(losses["adamw"])) == 4


def test_tokenizer_in_the_work_directory_is_used_again(smoke, tmp_path):
    _, workdir, source, _, built = smoke
    saved = (workdir / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(saved)
    task = source.build(tmp_path)
    assert task.description == built.task.description
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({**json.loads(saved), "pre_tokenizer": {"type": "Whitespace"}})
    )
    assert source.build(tmp_path).description != built.task.description


def test_one_trace_serves_every_learning_rate(tmp_path):
    traces = []
    task = toy_task.make()

    def counted(*args):
        traces.append(1)
        return task.loss_sum(*args)

    source = tasks.Source(
        "0" * 64, lambda workdir: dataclasses.replace(task, loss_sum=counted)
    )
    built, losses = None, []
    for rate in (1e-3, 1e-1):
        config = toy_task.config(steps=3)
        config.optimizers.adamw.learning_rate = rate
        final, built = run_job(config, tmp_path / str(rate), source, built)
        losses.append(final["loss"])
    assert len(traces) == 1
    assert losses[0] != losses[1]


def plain_loop(config, params, tx):
    """The final parameters, the optimizer's state and the losses of ten steps."""
    _, step_key = jax.random.split(jax.random.key(config.seed))
    state, losses, task = tx.init(params), [], toy_task.make()

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(params, batch, key):
        return task.loss_sum(params, {}, batch, key)[0] / task.weight(batch)

    for step in range(10):
        batch, key = toy_task.batch(step), jax.random.fold_in(step_key, step)
        loss, grads = value_and_grad(params, batch, key)

        def grad_fn(point, batch=batch, key=key):
            return value_and_grad(point, batch, key)[1]

        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    return params, state, losses


@pytest.mark.parametrize("optimizer", only({"acclip"}, ["acclip", "adamw", "momentum"]))
def test_steps_are_those_of_a_plain_optax_loop(tmp_path, optimizer):
    config = toy_task.config(optimizer, steps=10, log_every=3, eval_every=10)
    config.optimizers[optimizer].learning_rate = 0.05
    config.optimizers[optimizer].weight_decay = 0.5
    _, built = run_job(config, tmp_path / "run", toy_task.source())
    chosen = config.optimizers[optimizer]
    rates = optax.warmup_cosine_decay_schedule(0, chosen.learning_rate, 1, 10)
    mask = {"dense": {"kernel": True, "bias": False}}
    tx = trainer.optimizers.BUILDERS[optimizer](
        rates, weight_decay=chosen.weight_decay, mask=mask, **chosen.kwargs
    )
    start = built.init_state().params
    _, _, losses = plain_loop(config, start, optax.with_extra_args_support(tx))
    logged = by_kind(tmp_path / "run", "train")
    assert [record["step"] for record in logged] == [3, 6, 9, 10]
    means = [np.mean(losses[a:b]) for a, b in ((0, 3), (3, 6), (6, 9), (9, 10))]
    # jit and no jit round differently, over ten steps.
    np.testing.assert_allclose([r["loss"] for r in logged], means, rtol=1e-5)
    np.testing.assert_allclose(
        [record["learning_rate"] for record in logged],
        [rates(step) for step in (2, 5, 8, 9)],
        rtol=1e-5,
    )


def read_neumann(state, params):
    """Not ours: the parameters before the last displacement, w - mu m."""
    coefficient = optax.tree.get(state, "momentum_coefficient")
    momentum = optax.tree.get(state, "mu")
    return jax.tree.map(lambda w, m: w - coefficient * m, params, momentum)


@pytest.mark.parametrize(
    ("name", "kwargs", "read"),
    [
        pytest.param(
            "neumann_two_loop",
            {"num_inner_steps": 3},
            lambda state, params: params,
            marks=pytest.mark.nightly,
        ),
        ("neumann", {"burn_in_steps": 2}, read_neumann),
    ],
)
def test_what_an_optimizer_found_is_evaluated_and_kept(tmp_path, name, kwargs, read):
    """Beside a plain loop, whose ``grad_fn`` has the batch and dropout of its step."""
    config = toy_task.config(steps=10, log_every=1, eval_every=10, warmup_fraction=0.0)
    entry = {"transform": name, "learning_rate": 0.05, "kwargs": kwargs}
    config.optimizers.adamw = entry
    final, built = run_job(config, tmp_path / "run", toy_task.source())
    rates = optax.warmup_cosine_decay_schedule(0.05, 0.05, 0, 10)
    tx = optax.with_extra_args_support(getattr(oht, name)(rates, **kwargs))
    params, state, losses = plain_loop(config, built.init_state().params, tx)
    want = read(state, params)
    logged = [record["loss"] for record in by_kind(tmp_path / "run", "train")]
    # jit and no jit round differently, over ten steps.
    np.testing.assert_allclose(logged, losses, rtol=1e-5)
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore(tmp_path / "run/params", params)
    for got, leaf in zip(*map(jax.tree.leaves, (kept, want)), strict=True):
        np.testing.assert_allclose(got, leaf, rtol=1e-5, atol=1e-6)
    assert final["loss"] == pytest.approx(
        programs.evaluate(built, want, {})["loss"], 1e-4
    )


def test_validation_loss_weighs_batches_by_their_examples(tmp_path):
    built = programs.build(
        Job.of(toy_task.config()).on(toy_task.source()), toy_task.make()
    )
    params = built.init_state().params
    small = {"x": np.zeros((1, 3), np.float32), "y": np.ones((1, 2), np.float32)}
    batches = [toy_task.batch(0), {**small, "scale": np.ones(1, np.float32)}]
    task = dataclasses.replace(built.task, eval_batches=lambda: batches)
    uneven = dataclasses.replace(
        built, task=task, eval_step=jax.jit(built.task.eval_sums)
    )
    sums = [built.task.eval_sums(params, {}, batch) for batch in batches]
    expected = float(sums[0]["loss"] + sums[1]["loss"]) / (16 + 2)
    assert programs.evaluate(uneven, params, {})["loss"] == pytest.approx(
        expected, rel=1e-6
    )


def test_toy_is_learnt(tmp_path):
    config = toy_task.config(steps=200, log_every=50, eval_every=100)
    config.optimizers.adamw.learning_rate = 0.1
    final, _ = run_job(config, tmp_path / "run", toy_task.source())
    assert final["loss"] < 0.05
    assert final["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("steps", "fraction", "step", "expected"),
    [
        (100, 0.1, 0, 0.0),
        (100, 0.1, 5, 0.5),
        (100, 0.1, 10, 1.0),
        (100, 0.1, 55, 0.5),
        (100, 0.1, 100, 0.0),
        (100, 0.0, 0, 1.0),
        (10, 0.1, 1, 1.0),
        (1, 1.0, 0, 1.0),
    ],
)
def test_schedule_warms_up_and_falls_to_zero(steps, fraction, step, expected):
    shape = plan.schedule(steps, fraction)
    assert float(shape(step)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("poisoned", "log_every"), [(5, 1), (5, 4), (9, 4), (1, 10)])
def test_non_finite_loss_ends_the_run_with_its_step(tmp_path, poisoned, log_every):
    config = toy_task.config(steps=10, log_every=log_every, eval_every=10)
    source = toy_task.source(poisoned_step=poisoned)
    final, _ = run_job(config, tmp_path / "run", source)
    assert (final["status"], final["step"]) == ("diverged", poisoned)
    assert final["loss"] is None
    kept = [record["step"] for record in by_kind(tmp_path / "run", "train")]
    assert kept == list(range(log_every, poisoned, log_every))
    assert not (tmp_path / "run" / "params").exists()


@pytest.mark.parametrize("log_every", only({4}, [1, 4]))
def test_unsafe_steps_are_skipped_and_counted(tmp_path, log_every):
    """The run goes on as if there had been no such step."""
    config = toy_task.config(steps=10, log_every=log_every, eval_every=10)
    config.optimizers.adamw.skip_if_unsafe = {"max_in_a_row": 2}
    source = toy_task.source(poisoned_step=5)
    final, _ = run_job(config, tmp_path / "run", source)
    assert (final["status"], final["step"]) == ("complete", 10)
    assert (final["num_nonfinite"], final["num_spikes"]) == (1, 0)
    logged = by_kind(tmp_path / "run", "train")
    assert all(math.isfinite(record["loss"]) for record in logged)
    expected = [1, 2, 3, 4, 6, 7, 8, 9, 10] if log_every == 1 else [4, 8, 10]
    assert [record["step"] for record in logged] == expected
    assert [record["num_nonfinite"] for record in logged] == [
        int(step >= 5) for step in expected
    ]
    assert math.isfinite(final["loss"])


def test_the_optimizer_is_told_the_loss():
    """A loss that jumps while its gradient stays is skipped by the rule on it."""
    task = toy_task.make()
    raised = dataclasses.replace(
        task,
        loss_sum=lambda params, *rest: (
            task.loss_sum(params, *rest)[0] + rest[1]["lift"].sum(),
            rest[0],
        ),
    )
    config = toy_task.config()
    config.optimizers.adamw.skip_if_unsafe = {"window": 2, "max_value_deviations": 5.0}
    optimizer = trainer.optimizers.build(config.optimizers.adamw)
    key = jax.random.key(0)
    step = jax.jit(steps.make_train_step(raised, optimizer, lambda count: 1.0, key))
    state = steps.new_state(raised, optimizer, key)
    skipped = []
    for lift in (0.0, 0.0, 1e6, 0.0):
        batch = {**toy_task.batch(0), "lift": np.full(8, lift, np.float32)}
        state, _ = step(
            state, steps.new_window(), programs.stack([batch]), jnp.float32(0.01)
        )
        skipped.append(trainer.optimizers.skipped(state.opt_state)["num_value_spikes"])
    assert skipped == [0, 0, 1, 1]


def test_too_many_unsafe_steps_end_the_run(tmp_path):
    config = toy_task.config(steps=10, log_every=4, eval_every=10)
    config.optimizers.adamw.skip_if_unsafe = {"max_in_a_row": 1}
    source = toy_task.source(poisoned_step=5)
    final, _ = run_job(config, tmp_path / "run", source)
    assert (final["status"], final["step"]) == ("diverged", 5)
    assert final["num_nonfinite"] >= 1
    assert not (tmp_path / "run" / "params").exists()


@pytest.mark.parametrize(
    ("transform", "change"),
    [
        ("powersign", {"kwargs": {"b1": "a"}}),
        ("neumann_two_loop", {"kwargs": {"num_inner_steps": 1, "convexify": [1.0]}}),
        ("adamw", {"kwargs": {"beta1": 0.9}}),
    ],
)
def test_bad_arguments_of_an_optimizer_are_one_line(transform, change):
    config = toy_task.config()
    entry = {"transform": transform, "learning_rate": 0.1, "kwargs": {}, **change}
    config.optimizers.adamw = entry
    with pytest.raises(UserError, match=r"config.optimizers.adamw") as error:
        Job.of(config).on(toy_task.source())
    assert "\n" not in str(error.value)


def test_the_decay_of_a_sign_rule_may_be_none():
    config = toy_task.config()
    entry = {
        "transform": "powersign",
        "learning_rate": 0.1,
        "kwargs": {"sign_decay": None},
    }
    config.optimizers.adamw = entry
    Job.of(config).on(toy_task.source())


def test_bad_arguments_of_skipping_are_one_line():
    config = toy_task.config()
    config.optimizers.adamw.skip_if_unsafe = {"window": 0}
    with pytest.raises(UserError, match=r"optimizers.adamw: window must be an integer"):
        Job.of(config).on(toy_task.source())


def test_diverged_run_is_not_run_again(tmp_path):
    config = toy_task.config(steps=3)
    first, _ = run_job(config, tmp_path / "run", toy_task.source(2))
    second, built = run_job(config, tmp_path / "run", toy_task.source(2))
    assert first == second
    assert built is None


def test_last_update_that_breaks_the_model_is_noticed(tmp_path):
    config = toy_task.config("momentum", steps=1)
    config.optimizers.momentum.learning_rate = 1e38
    final, _ = run_job(config, tmp_path / "run", toy_task.source())
    assert (final["status"], final["step"]) == ("diverged", 1)
    assert len(by_kind(tmp_path / "run", "train")) == 1  # its loss was finite


def test_finished_run_is_used_again(tmp_path, capsys):
    config = toy_task.config(steps=3)
    first, _ = run_job(config, tmp_path / "run", toy_task.source())
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    second, built = run_job(config, tmp_path / "run", toy_task.source())
    assert "already complete" in capsys.readouterr().out
    assert first == second
    assert built is None
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "cut", only([b'{"kind": "train", "st'], [b"", b'{"kind": "train", "st'])
)
def test_run_without_a_checkpoint_starts_again_and_keeps_its_metrics(tmp_path, cut):
    config, workdir = toy_task.config(steps=3), tmp_path / "run"
    run_job(config, workdir, toy_task.source())
    whole = timeless(workdir)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    left = b"".join(lines[:2]) + cut
    metrics.write_bytes(left)
    shutil.rmtree(workdir / "checkpoints")
    run_job(config, workdir, toy_task.source())
    assert timeless(workdir) == whole
    aside = workdir / "interrupted-1"
    assert (aside / "metrics.jsonl").read_bytes() == left
    assert (aside / "params").is_dir()
    metrics.write_bytes(left)
    shutil.rmtree(workdir / "checkpoints")
    run_job(config, workdir, toy_task.source())
    assert (workdir / "interrupted-2").is_dir()
    assert (aside / "metrics.jsonl").read_bytes() == left


def test_folder_in_use_by_another_process_is_refused(tmp_path):
    config, workdir = toy_task.config(steps=3), tmp_path / "run"
    with folders.locked(workdir), pytest.raises(UserError, match="another process"):
        run_job(config, workdir, toy_task.source())
    final, _ = run_job(config, workdir, toy_task.source())
    assert final["status"] == "complete"


def test_failed_start_leaves_the_folder_free(tmp_path):
    def fail(workdir):
        raise UserError("too short")

    with pytest.raises(UserError, match="too short"):
        run_job(toy_task.config(), tmp_path, tasks.Source("1" * 64, fail))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "left", only([b"\x00\x00\n"], [b"", b'{"kind": "train"', b"\x00\x00\n"])
)
def test_run_killed_at_its_first_record_starts_again(tmp_path, left):
    config, workdir = toy_task.config(steps=3), tmp_path / "run"
    folders.claim(workdir, Job.of(config).on(toy_task.source()).config)
    (workdir / "metrics.jsonl").write_bytes(left)
    final, _ = run_job(config, workdir, toy_task.source())
    assert final["status"] == "complete"


def test_folder_of_another_config_is_refused_by_field(tmp_path):
    workdir = tmp_path / "run"
    run_job(toy_task.config(steps=3), workdir, toy_task.source())
    before = (workdir / "metrics.jsonl").read_bytes()
    other = toy_task.config("momentum", steps=4)
    with pytest.raises(UserError) as caught:
        run_job(other, workdir, toy_task.source())
    message = str(caught.value)
    assert "\n" not in message
    assert "config.steps was 3, now 4" in message
    assert "config.optimizer.name was adamw, now momentum" in message
    assert "config.seed" not in message
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_folder_with_another_text_is_refused(tmp_path):
    run_job(toy_task.config(steps=3), tmp_path, toy_task.source())
    source = dataclasses.replace(toy_task.source(), sha256="1" * 64)
    with pytest.raises(UserError, match=r"config.data.sha256 was 000.*, now 111"):
        run_job(toy_task.config(steps=3), tmp_path, source)


def test_changes_that_do_not_touch_the_run_are_accepted(tmp_path):
    config = toy_task.config(steps=3)
    run_job(config, tmp_path, toy_task.source())
    config.optimizers.gclip.learning_rate = 123.0
    config.sweep.learning_rates.adamw = (1.0,)
    final, _ = run_job(config, tmp_path, toy_task.source())
    assert final["status"] == "complete"


def test_broken_config_file_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json: not JSON"):
        run_job(toy_task.config(), tmp_path, toy_task.source())


def test_unwritable_work_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.run: Not a directory"):
        run_job(toy_task.config(), tmp_path / "file/run", toy_task.source())


@pytest.mark.nightly
def test_dropout_follows_seed_and_step():
    task = toy_task.make()
    step_key = jax.random.key(0)
    optimizer = trainer.optimizers.build(toy_task.config().optimizers.adamw)
    step_fn = steps.make_train_step(task, optimizer, lambda step: 0.0, step_key)
    start = steps.new_state(task, optimizer, step_key)
    batch = programs.stack([toy_task.batch(0)])

    def loss_at(step):
        state = start._replace(position=jnp.int32(step))
        _, window = step_fn(state, steps.new_window(), batch, jnp.float32(0))
        return float(window.loss_sum)

    losses = [loss_at(step) for step in range(8)]
    assert losses[3] == loss_at(3)
    assert len(set(losses)) > 1
