"""Parameter trees of known models: the shape of every leaf."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

Shapes = dict[str, tuple[int, ...]]


def resnet50() -> Shapes:
    """ResNet-50 v1.5, 1000 classes; v1 and v1.5 differ in strides alone."""
    shapes: Shapes = {"stem/kernel": (7, 7, 3, 64), **_pair("stem_norm", 64)}
    channels = 64
    for stage, (blocks, width) in enumerate(
        zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)
    ):
        for block in range(blocks):
            name = f"stage_{stage}/block_{block}"
            convs = {
                "reduce": (1, 1, channels, width),
                "middle": (3, 3, width, width),
                "expand": (1, 1, width, 4 * width),
            }
            if block == 0:
                convs["shortcut"] = (1, 1, channels, 4 * width)
            for conv, shape in convs.items():
                shapes[f"{name}/{conv}/kernel"] = shape
                shapes |= _pair(f"{name}/{conv}_norm", shape[-1])
            channels = 4 * width
    return shapes | _dense("head", channels, 1000)


def bert_base() -> Shapes:
    """BERT-base, uncased vocabulary, with its pooler."""
    return _bert(num_layers=12, width=768)


def bert_large() -> Shapes:
    """BERT-large, uncased vocabulary, with its pooler."""
    return _bert(num_layers=24, width=1024)


def tiny() -> Shapes:
    """Three leaves, to try a command with."""
    return {**_dense("dense", 32, 64), "scale": ()}


def equal_leaves(count: int) -> Shapes:
    """Many small leaves of one shape."""
    return {f"leaf_{i:05}": (16, 16) for i in range(count)}


TREES: dict[str, Callable[[], Shapes]] = {
    "resnet50": resnet50,
    "bert_base": bert_base,
    "bert_large": bert_large,
    "tiny": tiny,
}


def num_params(shapes: Shapes) -> int:
    """The number of entries of all leaves."""
    return sum(math.prod(shape) for shape in shapes.values())


def filled(shapes: Shapes, size: float, seed: int) -> dict[str, Any]:
    """Float32 leaves of the given standard deviation, in memory of their own."""
    noise = np.random.default_rng(seed).normal(0.0, size, 2**16 + 1)
    block = noise.astype(np.float32)  # repeated: random numbers for all take too long
    return {name: jnp.array(np.resize(block, s)) for name, s in shapes.items()}


def _bert(num_layers: int, width: int) -> Shapes:
    shapes: Shapes = {
        "token": (30522, width),
        "position": (512, width),
        "token_type": (2, width),
        **_pair("embedding_norm", width),
    }
    for i in range(num_layers):
        for name in ("query", "key", "value", "out"):
            shapes |= _dense(f"layer_{i}/{name}", width, width)
        shapes |= _pair(f"layer_{i}/attention_norm", width)
        shapes |= _dense(f"layer_{i}/mlp_in", width, 4 * width)
        shapes |= _dense(f"layer_{i}/mlp_out", 4 * width, width)
        shapes |= _pair(f"layer_{i}/mlp_norm", width)
    return shapes | _dense("pooler", width, width)


def _dense(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}/kernel": (n_in, n_out), f"{name}/bias": (n_out,)}


def _pair(name: str, width: int) -> Shapes:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}
