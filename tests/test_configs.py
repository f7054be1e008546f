import functools
import importlib
import inspect
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

import experiments.configs
import optax_heavytail as oht
from experiments import tasks
from experiments.common.errors import UserError
from experiments.data import stream
from experiments.models import bert
from experiments.tasks import images, mlm, squad
from experiments.training import (
    optimizers,
    parallel,
    plan,
    sharding_rules,
    steps,
)
from experiments.training.job import Job
from tests.in_time import in_time
from tests.toy_runs import run_job

FOLDER = Path(experiments.configs.__file__).parent
ROOT = FOLDER.parents[1]
SHARED = {
    "__init__",
    "defaults",
    "fields",
    "image_defaults",
    "learn_lstm",  # no run of the trainer
    "learn_mlp",
    "mlm_defaults",
    "search_rules",
    "variants",
}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED)
# Like other configs, which CI runs, but for a size or an option.
ALIKE = (
    "bert_base",
    "bert_base6",
    "bert_base_pod",
    "bert_large",
    "bert_large_32k",
    "bert_tiny_gaussian_inputs",
    "bert_tiny_no_attention",
    "resnet101_imagenet",
    "resnet50_imagenet_32k",
)


# The longest to trace or to compile; their tasks have tests of their own.
LONG = ("resnet18_cifar", "resnet50_imagenet", "squad")


def each_config(names):
    """A test of each of these configs, the parameter ``name``."""
    later = ALIKE + LONG
    params = in_time({name: name for name in names}, lambda name: name not in later)
    return pytest.mark.parametrize("name", params)


def module(name):
    return importlib.import_module(f"experiments.configs.{name}")


def test_every_config_is_here():
    berts = {"bert_tiny", "bert_base6", "bert_base", "bert_large"}
    berts |= {"bert_base_pod", "bert_large_32k"}
    berts |= {"bert_tiny_gaussian_inputs", "bert_tiny_no_attention"}
    imagenet = {"resnet50_imagenet", "resnet50_imagenet_32k", "resnet101_imagenet"}
    resnets = {"resnet_digits", "resnet18_cifar"} | imagenet
    assert {"digits_zoo", "squad"} | berts | resnets == set(NAMES)


def test_the_zoo_has_every_optimizer():
    zoo = module("digits_zoo").get_config()
    entries = {entry.transform for entry in zoo.optimizers.values()}
    assert entries == set(optimizers.BUILDERS)
    # Whatever the package exports that takes a rate first is an optimizer.
    ours = {
        name
        for name in oht.__all__
        if callable(factory := getattr(oht, name))
        and next(iter(inspect.signature(factory).parameters), "") == "learning_rate"
    }
    others = {"BatchSizePlan", "NormalizedMomentum", "grow_batch"}
    parts = {"neumann_inner_loop", "scale_by_learning_rate"}
    samplers = {"overdamped_langevin", "underdamped_langevin"}
    assert ours - others - parts - samplers <= entries


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_command_hardware_and_expectation(name):
    doc = module(name).__doc__
    assert f"--config=experiments/configs/{name}.py" in doc
    assert "Hardware:" in doc
    assert "Expected:" in doc


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variant_is_refused(name):
    with pytest.raises(UserError, match=r"huge: must be full(, smoke)? or "):
        module(name).get_config("huge")


def test_the_quick_variant_is_a_third_of_the_full_one():
    full, quick = (module("bert_tiny").get_config(v) for v in ("full", "quick"))
    assert set(quick.compare.optimizers) <= set(full.compare.optimizers)
    assert 3 * quick.steps <= full.steps
    with pytest.raises(UserError, match="quick: must be full or smoke"):
        module("bert_base").get_config("quick")


def mlm_shapes(config):
    data = config.data
    model_config = bert.BertConfig(
        data.vocab_size, data.sequence_length, **config.model
    )
    slots = mlm.text.max_masked(data.sequence_length)
    masked = jax.ShapeDtypeStruct((stream.microbatch_size(config), slots), np.int32)
    batch = {
        "tokens": jax.ShapeDtypeStruct(
            (stream.microbatch_size(config), data.sequence_length), np.int32
        ),
        "positions": masked,
        "targets": masked,
        "weights": jax.ShapeDtypeStruct(masked.shape, np.float32),
    }
    return mlm.model_functions(model_config), batch


def images_shapes(config):
    rows, size = stream.microbatch_size(config), config.data.image_size
    channels, num_classes = len(config.data.mean), 1000 if size == 224 else 10
    batch = {
        "images": jax.ShapeDtypeStruct((rows, size, size, channels), np.uint8),
        "labels": jax.ShapeDtypeStruct((rows,), np.int32),
        "weights": jax.ShapeDtypeStruct((rows,), np.float32),
    }
    return images.model_functions(config, num_classes, channels, 255), batch


def squad_shapes(config):
    data, rows = config.data, stream.microbatch_size(config)
    model_config = bert.BertConfig(
        data.vocab_size, data.sequence_length, **config.model
    )
    row = jax.ShapeDtypeStruct((rows,), np.int32)
    tokens = jax.ShapeDtypeStruct((rows, data.sequence_length), np.int32)
    batch = {
        "tokens": tokens,
        "token_types": tokens,
        "first": row,
        "last": row,
        "weights": jax.ShapeDtypeStruct((rows,), np.float32),
    }
    return squad.model_functions(model_config, data.n_best, data.answer_length), batch


SHAPES = {"mlm": mlm_shapes, "images": images_shapes, "squad": squad_shapes}


@each_config(NAMES)
def test_full_size_step_keeps_its_shapes_and_fits_its_devices(name):
    """Traces the whole step, and the update of every optimizer, without memory.

    The mesh is the one that the sizes are meant for; every sharding divides, or its
    shapes could not be had.
    """
    config = module(name).get_config()
    Job.of(config)
    layout = target_layout(config)
    functions, batch = SHAPES[config.task](config)
    task = tasks.without_data(functions)
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    built = {
        chosen: optimizers.build(optimizers.settings(optimizers.select(config, chosen)))
        for chosen in config.compare.optimizers
    }
    some = representatives(params)
    for optimizer in built.values():
        opt_state = jax.eval_shape(optimizer.init, some)
        update = functools.partial(optimizer.update, grad_fn=lambda point: point)
        after = jax.eval_shape(update, some, opt_state, some)
        assert described(after) == described((some, opt_state))
    states = {
        chosen: steps.TrainState(
            params, model_state, jax.eval_shape(optimizer.init, params), COUNT, COUNT
        )
        for chosen, optimizer in built.items()
    }
    check_memory(name, layout, states)
    state, optimizer = states[config.optimizer.name], built[config.optimizer.name]
    factor = plan.make(config).factor
    step = steps.make_train_step(task, optimizer, factor, jax.random.key(0))
    window = jax.eval_shape(steps.new_window)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.accumulate, *x.shape), x.dtype), batch
    )
    on_mesh = layout.jit_step(step, state, window, batch)
    after = jax.eval_shape(on_mesh, state, window, batch, jnp.float32(0))
    assert described(after) == described((state, window))


COUNT = jax.ShapeDtypeStruct((), np.int32)


def target_layout(config):
    """Of the devices that the config is meant for, which need not be here."""
    size = (config.target_devices // config.fsdp, config.fsdp)
    assert math.prod(size) == config.target_devices
    axes = (parallel.DATA, parallel.FSDP)
    mesh = AbstractMesh(size, axes, axis_types=(AxisType.Auto,) * 2)
    return parallel.Layout(config.parallel, mesh, sharding_rules.build(config))


def bytes_on_a_device(layout, state):
    """Parameters, statistics and optimizer state on one device of the layout."""
    held = jax.tree.map(
        lambda sharding, leaf: (
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        ),
        layout.state_shardings(state),
        state,
    )
    return sum(jax.tree.leaves(held))


def hardware(name):
    """Devices and bytes on each of them, as the docstring says; no bytes for a CPU."""
    line = re.search(r"^Hardware: (.+?)^Expected:", module(name).__doc__, re.M | re.S)
    found = re.match(
        r"(?P<number>one|\d+) (?P<kind>\w+).*?((?P<gigabytes>\d+) GB|\Z)", line[1], re.S
    )
    if found["kind"] == "CPU":
        return 1, math.inf
    number = 1 if found["number"] == "one" else int(found["number"])
    return number, int(found["gigabytes"]) * 1e9


def check_memory(name, layout, states):
    """The docstring's memory has room for the largest state and a gradient."""
    number, room = hardware(name)
    assert number == layout.mesh.size
    largest = max(states, key=lambda chosen: bytes_on_a_device(layout, states[chosen]))
    state = states[largest]
    held = bytes_on_a_device(layout, state)
    gradient = bytes_on_a_device(layout, state._replace(opt_state=()))
    assert held + gradient < room
    megabytes = f"{(held + gradient) / 1e6:,.1f} MB"
    assert size_rows()[name][2:4] == [largest, megabytes]
    if number > 1:
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        gigabytes = [f"{size / 1e9:.2f} GB" for size in (whole, held, gradient)]
        config = module(name).get_config()
        rows = stream.microbatch_size(config)
        assert rows % number == 0
        counts = [number, config.fsdp, config.accumulate, rows // number]
        assert guide_rows()[name] == [*map(str, counts), largest, *gigabytes]


def guide_rows():
    """Cells of the guide's table, by config."""
    return rows_by_config("docs/guide/pods.md")


def size_rows():
    """Cells of the table of all sizes, by config."""
    return rows_by_config("docs/experiments.md")


def rows_by_config(page):
    rows = {}
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `experiments/configs/(\w+)\.py` \|(.+)\|$", line):
            rows[match[1]] = [cell.strip(" `") for cell in match[2].split("|")]
    return rows


def test_the_table_of_sizes_says_what_was_never_run():
    """In the words of each config, which a training of its size will change."""
    rows = size_rows()
    others = {"learn_lstm", "learn_mlp", "search_rules"}
    assert set(rows) == {*NAMES, *others}
    for name, (_, devices, *_, measured) in rows.items():
        is_missing = "Expected: not measured yet" in module(name).__doc__
        assert measured.startswith("not measured") == is_missing, name
        assert measured
        if name in NAMES:
            number = module(name).get_config().target_devices
            assert number == 1 or str(number) in devices.split()


def test_the_guide_has_every_config_for_many_devices():
    configs = {name: module(name).get_config() for name in NAMES}
    many = {name for name, config in configs.items() if config.target_devices > 1}
    assert set(guide_rows()) == many


def representatives(params):
    """The first leaf of each shape and name; a ResNet-101 has 314."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.setdefault((path[-1].key, leaf.shape), (path, leaf))
    return {jax.tree_util.keystr(path): leaf for path, leaf in found.values()}


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# bert_tiny runs in test_experiments_train and test_experiments_cli.
@each_config(sorted(set(NAMES) - {"bert_tiny"}))
def test_smoke_variant_runs_two_steps(name, tmp_path):
    config = module(name).get_config("smoke")
    config.num_devices = 1
    final, _ = run_job(config, tmp_path / "run", tasks.load(config))
    assert (final["status"], final["step"]) == ("complete", 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_has_a_rate_inside_a_grid_of_equal_size(name):
    config = module(name).get_config()
    grids = config.sweep.learning_rates
    assert set(config.compare.optimizers) <= set(grids) == set(config.optimizers)
    assert len({len(grid) for grid in grids.values()}) == 1
    for chosen, grid in grids.items():
        assert sorted(grid) == list(grid)
        rate = config.optimizers[chosen].learning_rate
        assert rate in grid
        assert min(grid) < rate < max(grid)
