import functools
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.configs
import optax_heavytail as oht
from experiments import optimizers, plan, steps, tasks, train
from experiments.data import stream
from experiments.errors import UserError
from experiments.models import bert
from experiments.tasks import images, mlm, squad

FOLDER = Path(experiments.configs.__file__).parent
SHARED = {"__init__", "defaults", "image_defaults", "mlm_defaults", "variants"}
NAMES = sorted({path.stem for path in FOLDER.glob("*.py")} - SHARED)


def module(name):
    return importlib.import_module(f"experiments.configs.{name}")


def test_every_config_is_here():
    berts = {"bert_tiny", "bert_base6", "bert_base", "bert_large"}
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
    others = {"BatchSizePlan", "grow_batch"}
    parts = {"neumann_inner_loop", "scale_by_learning_rate"}
    assert ours - others - parts <= entries


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_command_hardware_and_expectation(name):
    doc = module(name).__doc__
    assert f"--config=experiments/configs/{name}.py" in doc
    assert "Hardware:" in doc
    assert "Expected:" in doc


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variant_is_refused(name):
    with pytest.raises(UserError, match="huge: must be full or smoke"):
        module(name).get_config("huge")


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


DATA = ("train_batches", "eval_batches", "baselines", "description", "save_assets")
SHAPES = {"mlm": mlm_shapes, "images": images_shapes, "squad": squad_shapes}


@pytest.mark.parametrize("name", NAMES)
def test_full_size_step_keeps_its_shapes(name):
    """Traces the whole step, and the update of every optimizer, without memory."""
    config = module(name).get_config()
    train.check(config)
    functions, batch = SHAPES[config.task](config)
    task = tasks.Task(**functions, **dict.fromkeys(DATA))
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
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
    optimizer = built[config.optimizer.name]
    factor = plan.make(config).factor
    step = steps.make_train_step(task, optimizer, factor, jax.random.key(0))
    state = jax.eval_shape(
        functools.partial(steps.new_state, task, optimizer), jax.random.key(0)
    )
    window = jax.eval_shape(steps.new_window)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((config.accumulate, *x.shape), x.dtype), batch
    )
    after = jax.eval_shape(step, state, window, batch, jnp.float32(0))
    assert described(after) == described((state, window))


def representatives(params):
    """The first leaf of each shape and name; a ResNet-101 has 314."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found.setdefault((path[-1].key, leaf.shape), (path, leaf))
    return {jax.tree_util.keystr(path): leaf for path, leaf in found.values()}


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# bert_tiny runs in test_experiments_train and test_experiments_cli.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"bert_tiny"}))
def test_smoke_variant_runs_two_steps(name, tmp_path):
    config = module(name).get_config("smoke")
    config.num_devices = 1
    final, _ = train.run(config, tmp_path / "run", tasks.load(config), None)
    assert (final["status"], final["step"]) == ("complete", 2)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_has_a_rate_inside_a_grid_of_equal_size(name):
    config = module(name).get_config()
    grids = config.sweep.learning_rates
    assert set(grids) == set(config.compare.optimizers) == set(config.optimizers)
    assert len({len(grid) for grid in grids.values()}) == 1
    for chosen, grid in grids.items():
        assert sorted(grid) == list(grid)
        rate = config.optimizers[chosen].learning_rate
        assert rate in grid
        assert min(grid) < rate < max(grid)
