"""The trainer on eight devices, or in microbatches, follows the trainer on one."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from experiments import tasks
from experiments.common import axes
from experiments.common.errors import UserError
from experiments.training import optimizers, parallel, plan, programs, steps
from experiments.training.job import Job
from tests import toy_task
from tests.in_time import only
from tests.toy_runs import run_job

NUM_STEPS = 5
ROWS = 64
SIZES = (16, 24, 8)
OPTIMIZERS = {
    "acclip": {"normalize": True, "eps": 1e-8},
    "adamw": {},
    "gclip": {"threshold": 0.5},
    "lambc": {},
    "neumann": {},
}
FSDP = {"fsdp": 4, "sharding_rules": (("kernel$", ("fsdp", None)),)}


def batch(seed):
    """Rows of very different weights: a mean of means would be another loss."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((ROWS, SIZES[0]), np.float32),
        "y": rng.standard_normal((ROWS, SIZES[2]), np.float32),
        "weights": np.arange(ROWS, dtype=np.float32) / 7,
    }


def init(key):
    params = {}
    for name, n_in, n_out in (("a", *SIZES[:2]), ("b", *SIZES[1:])):
        key, mine = jax.random.split(key)
        kernel = jax.random.normal(mine, (n_in, n_out)) / n_in**0.5
        params[name] = {"kernel": kernel, "bias": jnp.zeros(n_out)}
    return params, {"rows": jnp.zeros([])}


def squares(params, batch):
    x = jnp.tanh(batch["x"] @ params["a"]["kernel"] + params["a"]["bias"][None])
    y = x @ params["b"]["kernel"] + params["b"]["bias"][None]
    return jnp.sum((y - batch["y"]) ** 2, axis=1) * batch["weights"]


def make(config, corrupted=False):
    """Regression; the third eighth of each step's rows may be ``corrupted``."""
    axis_name = axes.batch_axis(config)

    def weight(batch):
        return jnp.sum(batch["weights"])

    def loss_sum(params, model_state, batch, key):
        del key
        rows = jnp.float32(len(batch["x"]))
        rows = rows if axis_name is None else jax.lax.psum(rows, axis_name)
        seen = {"rows": model_state["rows"] + rows}
        return jnp.sum(squares(params, batch)), seen

    def eval_sums(params, model_state, batch):
        return {"weight": weight(batch), "loss": jnp.sum(squares(params, batch))}

    def train_batches(start):
        index = start
        while True:
            step, part = divmod(index, config.accumulate)
            rows = ROWS // config.accumulate
            taken = slice(part * rows, (part + 1) * rows)
            made = batch(step)
            if corrupted:
                made["y"][ROWS // 4 : 3 * ROWS // 8] *= 1e6
            yield {name: array[taken] for name, array in made.items()}
            index += 1

    return tasks.Task(
        init=init,
        weight=weight,
        loss_sum=loss_sum,
        eval_sums=eval_sums,
        train_batches=train_batches,
        eval_batches=lambda: [batch(10**6)],
        baselines={},
        description={"source": "regression", "sha256": ""},
        save_assets=lambda folder: None,
    )


def settings(optimizer="adamw", **changes):
    kwargs = OPTIMIZERS.get(optimizer, {})
    changes = {"steps": NUM_STEPS, "batch_size": ROWS, **changes}
    config = toy_task.config(optimizer, **changes)
    entry = {"transform": optimizer, "learning_rate": 0.02, "kwargs": kwargs}
    config.optimizers[optimizer] = entry
    return config


def trained(config, corrupted=False, num_steps=NUM_STEPS):
    """The final state and window, and the program."""
    Job.of(config)
    task = make(config, corrupted)
    resolved = Job.of(config).on(tasks.Source("0" * 64, lambda workdir: task))
    built = programs.build(resolved, task)
    layout, microbatches = built.layout, task.train_batches(0)
    state = layout.enter(built.init_state())
    window = layout.enter(built.new_window())
    for count in built.plan.microbatches[:num_steps]:
        rows = programs.stack([next(microbatches) for _ in range(count)])
        state, window = layout.settle(
            built.train_step(int(count))(
                state, window, layout.place(rows), np.float32(0.02)
            )
        )
    return layout.leave(state), layout.leave(window), built


@pytest.fixture(scope="module")
def on_one_device():
    """By optimizer."""
    return {name: trained(settings(name))[:2] for name in OPTIMIZERS}


@pytest.mark.parametrize("optimizer", only({"acclip", "lambc"}, OPTIMIZERS))
@pytest.mark.parametrize(
    "ways",
    [
        pytest.param({"parallel": "jit"}, id="jit", marks=pytest.mark.nightly),
        pytest.param({"parallel": "jit", **FSDP}, id="fsdp"),
        pytest.param(
            {"parallel": "shard_map"}, id="shard_map", marks=pytest.mark.nightly
        ),
        pytest.param({"parallel": "pmap"}, id="pmap"),
        pytest.param(
            {"num_devices": 1, "accumulate": 4},
            id="accumulate",
            marks=pytest.mark.nightly,
        ),
        pytest.param({"parallel": "shard_map", "accumulate": 2}, id="both"),
    ],
)
def test_trajectory_is_that_of_one_device(on_one_device, optimizer, ways):
    state, window, built = trained(settings(optimizer, **{"num_devices": 8, **ways}))
    want_state, want_window = on_one_device[optimizer]
    # Sums in another order, over five steps; nothing else differs.
    np.testing.assert_allclose(window.loss_sum, want_window.loss_sum, rtol=1e-5)
    params, want_params = map(jax.tree.leaves, (state.params, want_state.params))
    for got, want in zip(params, want_params, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)
    assert int(state.step) == NUM_STEPS
    assert int(state.position) == NUM_STEPS * ways.get("accumulate", 1)
    assert float(state.model_state["rows"]) == NUM_STEPS * ROWS
    start = built.init_state().params["a"]["kernel"]
    moved = np.abs(np.asarray(start) - np.asarray(state.params["a"]["kernel"]))
    assert np.max(moved) > 1e-3
    # Where parameters are not read out, the metrics are those of the same parameters.
    got = programs.evaluate(built, state.params, state.model_state)
    want = float(squares(jax.device_get(state.params), batch(10**6)).sum())
    assert got["loss"] == pytest.approx(want / batch(0)["weights"].sum(), rel=1e-5)


def test_sharded_parameters_and_their_moments_lie_in_parts():
    state, _, built = trained(settings("adamw", num_devices=8, **FSDP), num_steps=1)
    parts = [
        leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "kernel" in jax.tree_util.keystr(path)
    ]
    assert len(parts) == 2 * 3  # two kernels: parameter, mu and nu
    assert set(parts) == {P("fsdp", None)}
    kernel = state.params["a"]["kernel"]
    assert kernel.addressable_data(0).shape == (SIZES[0] // 4, SIZES[1])
    others = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if "kernel" not in jax.tree_util.keystr(path)
    ]
    assert all(leaf.sharding.is_fully_replicated for leaf in others)
    shapes = jax.eval_shape(built.init_state)
    wanted = built.layout.state_shardings(shapes)
    for leaf, sharding in zip(*map(jax.tree.leaves, (state, wanted)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


ROBUST = {
    "mean_of_clipped": {"max_norm": 1.0},
    "coordinate_median": {},
    "trimmed_mean": {"trim": 1},
    "geometric_median": {},
    "median_of_means": {"num_groups": 4},
}


def final_loss(corrupted, steps=40, **changes):
    config = settings("momentum", **changes)
    config.steps = steps
    state, _, built = trained(config, corrupted, num_steps=steps)
    return programs.evaluate(built, state.params, state.model_state)["loss"]


@pytest.mark.parametrize(
    ("ways", "names"),
    [
        ({"accumulate": 8}, ROBUST),
        pytest.param(
            {"accumulate": 2, "num_devices": 4, "parallel": "shard_map"},
            ["geometric_median"],
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["microbatches", "devices"],
)
def test_one_corrupted_microbatch_in_eight(ways, names):
    """Robust rules end where the clean mean ends; the mean diverges."""

    def loss(corrupted, name="mean", **kwargs):
        aggregation = {"name": name, "kwargs": kwargs}
        return final_loss(corrupted, aggregation=aggregation, **ways)

    clean = loss(False)
    untrained = final_loss(False, steps=1, **ways)
    assert clean < 0.95 * untrained
    assert not loss(True) < 1e6 * untrained
    for name in names:
        assert loss(True, name, **ROBUST[name]) == pytest.approx(clean, rel=0.05), name


@pytest.mark.nightly
def test_the_batch_grows_where_the_rate_would_fall():
    config = settings("adamw", accumulate=2, max_batch_size=4 * ROWS)
    config.steps = 20
    grown = plan.make(config)
    counts = grown.microbatches
    assert counts[0] == 2
    assert counts[-1] == 8
    assert counts.sum() >= 40  # as many rows as before, in fewer steps
    assert grown.num_steps < 20
    steps = grown.num_steps
    state, _, _ = trained(config, num_steps=steps)
    assert int(state.step) == steps
    assert int(state.position) == counts.sum() == grown.position(steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": "xmap"}, "parallel=xmap: must be one of jit, shard_map, pmap"),
        ({"num_devices": 9}, r"num_devices=9: must be 0 \(all\) or up to 8"),
        ({"num_devices": 6}, "64 rows must be a multiple of the 6 device"),
        ({"num_devices": 8, "fsdp": 3}, "fsdp=3: must divide the 8"),
        (
            {"num_devices": 8, "fsdp": 2, "parallel": "pmap"},
            "fsdp=2: .* not under pmap",
        ),
        ({"accumulate": 3}, "accumulate=3: must be 1 or more and divide config.batch"),
        ({"accumulate": 0}, r"accumulate=0: must be an integer in \[1, "),
        ({"max_batch_size": 8}, "max_batch_size=8: must be 0 .* at least"),
        ({"sharding_rules": (("(", ()),)}, "sharding_rules: .* regular expression"),
        ({"sharding_rules": (("k", ("x",)),)}, "names an axis that is not data or"),
        ({"sharding_rules": (("k", ("fsdp",) * 2),)}, "or one of them twice"),
        ({"sharding_rules": ((b"k", ("fsdp",)),)}, "must be a regular expression"),
        (
            {"parallel": "pmap", "sharding_rules": (("k", ("data",)),)},
            "'k' names data, along which config.parallel=pmap lays the rows alone",
        ),
        ({"steps": 10**8}, r"steps=100000000: must be an integer in \[1, 10000000\]"),
        ({"aggregation": {"name": "mode", "kwargs": {}}}, "name=mode: must be one of"),
        (
            {"aggregation": {"name": "trimmed_mean", "kwargs": {"trim": 1}}},
            "less than half of 1 microbatches, got 1",
        ),
        (
            {"aggregation": {"name": "coordinate_median", "kwargs": {}}},
            "coordinate_median: is the mean of fewer than 3 gradients; a step has 1",
        ),
        (
            {"aggregation": {"name": "mean", "kwargs": {"trim": 1}}},
            "mean takes none",
        ),
        (
            {"aggregation": {"name": "mean_of_clipped", "kwargs": {"max_norm": -1.0}}},
            "max_norm must be in",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Job.of(settings(**changes))
    assert "\n" not in str(caught.value)


def test_a_rule_that_does_not_divide_names_the_parameter():
    rules = (("kernel$", (None, None, "fsdp")),)
    config = settings(num_devices=8, fsdp=8, sharding_rules=rules)
    with pytest.raises(UserError, match=r"lays a/kernel of shape \(16, 24\) out"):
        trained(config)


def test_a_rule_for_no_parameter_is_refused_and_takes_no_folder(tmp_path):
    rules = (("kernal$", ("fsdp",)),)
    config = settings(num_devices=8, fsdp=8, sharding_rules=rules)
    source = tasks.Source("0" * 64, lambda workdir: make(config))
    with pytest.raises(UserError, match="'kernal\\$' is in no parameter's path"):
        run_job(config, tmp_path, source)
    assert not list(tmp_path.iterdir())


def test_devices_are_in_the_order_of_their_processes(monkeypatch):
    """On TPU pods JAX may have them in another, by their places in the network."""
    found = [(0, 0), (1, 1), (2, 0), (3, 1)]
    there = [SimpleNamespace(id=i, process_index=process) for i, process in found]
    monkeypatch.setattr(jax, "devices", lambda: there)
    config = toy_task.config(num_devices=0)
    assert [device.id for device in parallel.devices(config)] == [0, 2, 1, 3]


def test_a_skipped_step_leaves_the_running_statistics():
    config = settings()
    config.optimizers.adamw.skip_if_unsafe = {"max_in_a_row": 5}
    task, optimizer = make(config), optimizers.build(config.optimizers.adamw)
    key = jax.random.key(0)
    step = jax.jit(steps.make_train_step(task, optimizer, lambda count: 1.0, key))
    state, window = steps.new_state(task, optimizer, key), steps.new_window()
    for scale in (1, np.nan, 1):
        rows = {name: array[None] * scale for name, array in batch(0).items()}
        state, window = step(state, window, rows, np.float32(0.01))
    assert int(state.step) == 3
    assert int(window.num_losses) == 2
    assert int(window.lost_step) == 0
    assert float(state.model_state["rows"]) == 2 * ROWS
