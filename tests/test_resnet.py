import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from experiments.models import resnet
from tests.in_time import only


def config(**changes):
    small = {"num_classes": 3, "block": "basic", "stages": (1, 1), "width": 4}
    return resnet.ResNetConfig(**{**small, "stem": "cifar", **changes})


def shapes(config):
    """Graph, and shapes of parameters and statistics."""
    graph, params, stats = nnx.split(
        nnx.eval_shape(lambda: resnet.ResNet(config, rngs=nnx.Rngs(0))),
        nnx.Param,
        nnx.BatchStat,
    )
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


@functools.partial(jax.jit, static_argnums=0)
def init(config):
    """Parameters of a new model."""
    model = resnet.ResNet(config, rngs=nnx.Rngs(0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def shaken(tree, rng):
    """Numbers in which no term vanishes; all positive, as variances are."""
    return jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), tree)


def as_float(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def apply(graph, params, stats, images, train):
    model = nnx.merge(graph, params, stats)
    logits = model(images, train=train)
    return logits, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


@pytest.mark.parametrize(
    ("size", "stem", "num_classes", "published"),
    [
        ("resnet18", "cifar", 10, 11_173_962),
        ("resnet50", "imagenet", 1000, 25_557_032),
        pytest.param(
            "resnet101", "imagenet", 1000, 44_549_160, marks=pytest.mark.nightly
        ),
    ],
)
def test_sizes_are_the_published_ones(size, stem, num_classes, published):
    sizes = resnet.SIZES[size]
    full = config(num_classes=num_classes, stem=stem, width=64, **sizes)
    _, params, _ = shapes(full)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


class Reference:
    """The network once more, in float64 and loops, from the papers' descriptions."""

    def __init__(self, config, params, stats, train):
        to_double = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
        self.config, self.train = config, train
        self.params, self.stats = to_double(params), to_double(stats)

    def convolve(self, x, kernel, stride):
        size = kernel.shape[0]
        edge = size // 2
        x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        height = (x.shape[1] - size) // stride + 1
        out = np.zeros((len(x), height, height, kernel.shape[-1]))
        for i in range(height):
            for j in range(height):
                top, left = i * stride, j * stride
                window = x[:, top : top + size, left : left + size]
                out[:, i, j] = np.einsum("nijc,ijcd->nd", window, kernel)
        return out

    def conv_norm(self, x, params, stats, stride=1):
        x = self.convolve(x, params["conv"]["kernel"], stride)
        mean, var = stats["norm"]["mean"], stats["norm"]["var"]
        if self.train:
            old = mean, var
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            stats["norm"]["mean"] = 0.9 * old[0] + 0.1 * mean
            stats["norm"]["var"] = 0.9 * old[1] + 0.1 * var
        x = (x - mean) / np.sqrt(var + 1e-5)
        return x * params["norm"]["scale"] + params["norm"]["bias"]

    def block(self, x, params, stats, stride):
        layers = params["branch"]
        strides = {2: (stride, 1), 3: (1, stride, 1)}[len(layers)]
        out = x
        for index, its_stride in enumerate(strides):
            out = self.conv_norm(
                np.maximum(out, 0) if index else out,
                layers[index],
                stats["branch"][index],
                its_stride,
            )
        if "shortcut" in params:
            x = self.conv_norm(x, params["shortcut"], stats["shortcut"], stride)
        return np.maximum(out + x, 0)

    def pool(self, x):
        x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # of non-negative numbers
        side = (x.shape[1] - 3) // 2 + 1
        return np.stack(
            [
                np.stack(
                    [
                        x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
                        for j in range(side)
                    ],
                    axis=1,
                )
                for i in range(side)
            ],
            axis=1,
        )

    def __call__(self, x):
        is_large = self.config.stem == "imagenet"
        params, stats = self.params, self.stats
        x = self.conv_norm(x, params["stem"], stats["stem"], 2 if is_large else 1)
        x = np.maximum(x, 0)
        if is_large:
            x = self.pool(x)
        index = 0
        for stage, count in enumerate(self.config.stages):
            for position in range(count):
                stride = 2 if stage and not position else 1
                x = self.block(
                    x, params["blocks"][index], stats["blocks"][index], stride
                )
                index += 1
        head = params["head"]
        return x.mean((1, 2)) @ head["kernel"] + head["bias"]


@pytest.mark.parametrize("train", only({True}, [False, True]))
@pytest.mark.parametrize(
    ("block", "stem", "stages", "size"),
    [("basic", "cifar", (2, 1), 6), ("bottleneck", "imagenet", (1, 2), 17)],
)
def test_network_is_the_one_of_the_papers(block, stem, stages, size, train):
    chosen = config(block=block, stem=stem, stages=stages)
    rng = np.random.default_rng(0)
    graph, params, stats = shapes(chosen)
    params = jax.tree.map(lambda x: rng.normal(0.3, 0.5, x.shape), params)
    stats = shaken(stats, rng)
    images = rng.normal(size=(5, size, size, 3))
    reference = Reference(chosen, params, stats, train)
    expected = reference(images)
    found, after = jax.jit(functools.partial(apply, graph), static_argnums=3)(
        *as_float((params, stats, images)), train
    )
    # Float32 through up to 11 layers, against numbers of about 1.
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4),
        after,
        reference.stats,
    )


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_new_block_is_its_shortcut(block):
    @jax.jit
    def outputs(x):
        one = resnet.BLOCKS[block](config(), 4, 2, 2, nnx.Rngs(0))
        return one(x, train=True), nnx.relu(one.shortcut(x, train=True))

    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    whole, shortcut = outputs(x)
    assert whole.any()
    np.testing.assert_array_equal(whole, shortcut)


def test_weights_start_as_published():
    params = init(config(stages=(1,), width=64, num_classes=500))
    kernel = params["stem"]["conv"]["kernel"]
    # He's, by the 9 x 64 numbers that each input goes to; 4 standard errors of 1,728
    # and of 32,000 normal numbers.
    assert kernel.shape == (3, 3, 3, 64)
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=7e-2)
    assert float(params["head"]["kernel"].std()) == pytest.approx(0.01, rel=1.6e-2)
    assert not params["head"]["bias"].any()


def test_half_precision_keeps_parameters_and_statistics_in_float32():
    graph, params, stats = shapes(config(dtype="bfloat16"))
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    forward = functools.partial(apply, graph, train=True)
    after = jax.eval_shape(forward, params, stats, images)
    for leaf in jax.tree.leaves((params, stats, after)):
        assert leaf.dtype == jnp.float32
    jaxpr = jax.make_jaxpr(forward)(params, stats, images).jaxpr
    kinds = [
        equation.outvars[0].aval.dtype
        for equation in jaxpr.eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert kinds == [jnp.bfloat16] * 6


def test_half_precision_does_not_round_running_statistics():
    layer = resnet.ConvNorm(config(dtype="bfloat16"), 1, 1, 1, rngs=nnx.Rngs(0))
    layer.conv.kernel[...] = jnp.ones((1, 1, 1, 1))
    layer.norm.mean[...] = jnp.array([256.5])  # in bfloat16 that is 256
    found = layer(jnp.full((1, 1, 1, 1), 256.0, jnp.bfloat16), train=False)
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0, 0, 0]) == pytest.approx(-0.5, rel=1e-2)


@pytest.mark.parametrize("mode", ["shard_map", "pmap"])
def test_statistics_are_those_of_all_devices(mode):
    devices = jax.devices()[:4]
    rng = np.random.default_rng(0)
    graph, *rest = shapes(config(stages=(1,)))
    params, stats = as_float(shaken(rest, rng))
    # Devices that differ, so that statistics of one would show.
    images = rng.normal(np.arange(8)[:, None, None, None], 1, (8, 4, 4, 3))
    images = np.asarray(images, np.float32)
    expected, after = jax.jit(functools.partial(apply, graph, train=True))(
        params, stats, images
    )
    graph, *_ = shapes(config(stages=(1,), axis_name="data"))

    def forward(images):
        return apply(graph, params, stats, images, train=True)

    if mode == "shard_map":
        mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=devices)
        found, stats = jax.jit(
            jax.shard_map(
                forward, mesh=mesh, in_specs=P("data"), out_specs=(P("data"), P())
            )
        )(images)
    else:
        spread = jax.pmap(forward, "data", devices=devices)
        found, stats = spread(images.reshape(4, 2, 4, 4, 3))
        found, stats = found.reshape(8, 3), jax.tree.map(lambda x: x[-1], stats)
    # Float32 sums in another order; numbers reach about 100.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-3),
        stats,
        after,
    )
