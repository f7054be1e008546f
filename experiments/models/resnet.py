"""Residual networks for images.

Architecture of He et al., `Deep residual learning
<https://arxiv.org/abs/1512.03385>`_, 2016, in the form known as v1.5: a bottleneck
block has its stride in the 3x3 convolution. Initialisation of Goyal et al., `Accurate,
large minibatch SGD <https://arxiv.org/abs/1706.02677>`_, 2017: a block's last scale
starts at 0, so that the block starts as the identity.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

SIZES = {
    "resnet18": {"block": "basic", "stages": (2, 2, 2, 2)},
    "resnet50": {"block": "bottleneck", "stages": (3, 4, 6, 3)},
    "resnet101": {"block": "bottleneck", "stages": (3, 4, 23, 3)},
}
BOTTLENECK_EXPANSION = 4
NORM_MOMENTUM = 0.9
NORM_EPS = 1e-5
HEAD_STDDEV = 0.01
STEMS = ("cifar", "imagenet")

he_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of the model; parameters are float32, ``dtype`` is for computing.

    Attributes:
      num_classes: width of the output.
      block: a name in `BLOCKS`.
      stages: blocks in each stage; every further stage halves the resolution and
        doubles the width.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      stem: ``imagenet``, a 7x7 convolution and max pooling, a quarter of the
        resolution; or ``cifar``, a 3x3 convolution that keeps it.
      channels: of the images.
      dtype: of convolutions; statistics, head and logits are float32 in any case.
      axis_name: mapped axis over which batch statistics are averaged, if any.
    """

    num_classes: int
    block: str
    stages: tuple[int, ...]
    width: int
    stem: str
    channels: int = 3
    dtype: str = "float32"
    axis_name: str | None = None


class ConvNorm(nnx.Module):
    """A convolution without bias, and batch normalisation."""

    def __init__(
        self,
        config: ResNetConfig,
        n_in: int,
        n_out: int,
        size: int,
        stride: int = 1,
        *,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        pad = (size - 1) // 2  # on both sides, where "SAME" with a stride is lopsided
        self.dtype = jnp.dtype(config.dtype)
        self.conv = nnx.Conv(
            n_in,
            n_out,
            (size, size),
            stride,
            padding=((pad, pad), (pad, pad)),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=he_fan_out,
            rngs=rngs,
        )
        # In float32 whatever the compute dtype: Flax would round the running mean and
        # variance to it. XLA fuses the conversions.
        self.norm = nnx.BatchNorm(
            n_out,
            momentum=NORM_MOMENTUM,
            epsilon=NORM_EPS,
            dtype=jnp.float32,
            scale_init=scale_init,
            axis_name=config.axis_name,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, n_in) images."""
        x = self.norm(self.conv(x), use_running_average=not train)
        return x.astype(self.dtype)


class _Residual(nnx.Module):
    """What both blocks share: relu(branch + shortcut)."""

    branch: nnx.List
    shortcut: ConvNorm | None

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps (batch, height, width, channels) images."""
        shortcut = x if self.shortcut is None else self.shortcut(x, train=train)
        for layer in self.branch[:-1]:
            x = nnx.relu(layer(x, train=train))
        return nnx.relu(self.branch[-1](x, train=train) + shortcut)


def _shortcut(
    config: ResNetConfig, n_in: int, n_out: int, stride: int, rngs: nnx.Rngs
) -> ConvNorm | None:
    if n_in == n_out and stride == 1:
        return None
    return ConvNorm(config, n_in, n_out, 1, stride, rngs=rngs)


class BasicBlock(_Residual):
    """Two 3x3 convolutions; the first has the stride."""

    expansion = 1

    def __init__(
        self, config: ResNetConfig, n_in: int, width: int, stride: int, rngs: nnx.Rngs
    ):
        last = {"scale_init": nnx.initializers.zeros, "rngs": rngs}
        self.branch = nnx.List(
            [
                ConvNorm(config, n_in, width, 3, stride, rngs=rngs),
                ConvNorm(config, width, width, 3, **last),
            ]
        )
        self.shortcut = _shortcut(config, n_in, width, stride, rngs)


class BottleneckBlock(_Residual):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one has the stride."""

    expansion = BOTTLENECK_EXPANSION

    def __init__(
        self, config: ResNetConfig, n_in: int, width: int, stride: int, rngs: nnx.Rngs
    ):
        n_out = self.expansion * width
        last = {"scale_init": nnx.initializers.zeros, "rngs": rngs}
        self.branch = nnx.List(
            [
                ConvNorm(config, n_in, width, 1, rngs=rngs),
                ConvNorm(config, width, width, 3, stride, rngs=rngs),
                ConvNorm(config, width, n_out, 1, **last),
            ]
        )
        self.shortcut = _shortcut(config, n_in, n_out, stride, rngs)


BLOCKS = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over the image, and a linear output."""

    def __init__(self, config: ResNetConfig, *, rngs: nnx.Rngs):
        is_large = config.stem == "imagenet"
        self.dtype = jnp.dtype(config.dtype)
        self.pools = is_large
        self.stem = ConvNorm(
            config,
            config.channels,
            config.width,
            7 if is_large else 3,
            2 if is_large else 1,
            rngs=rngs,
        )
        block = BLOCKS[config.block]
        blocks, n_in = [], config.width
        for stage, count in enumerate(config.stages):
            width = config.width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(config, n_in, width, stride, rngs))
                n_in = block.expansion * width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(
            n_in,
            config.num_classes,
            kernel_init=nnx.initializers.normal(HEAD_STDDEV),
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies ``images`` (batch, height, width, channels).

        Args:
          images: normalised pixels.
          train: True normalises by the batch and moves the running statistics, which
            are otherwise what normalises.

        Returns:
          (batch, classes) float32 logits.
        """
        x = nnx.relu(self.stem(images.astype(self.dtype), train=train))
        if self.pools:
            edges: Any = ((1, 1), (1, 1))  # declared as a name alone
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=edges)
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))
