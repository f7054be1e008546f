"""The encoder of a finished masked-language-model run, for another task."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from tokenizers import Tokenizer

from experiments.common import inputs
from experiments.common.errors import UserError
from experiments.common.types import Config
from experiments.data import tokenizer
from experiments.runs import folders, reading, seals

PyTree = Any
SIZES = ("num_layers", "width", "num_heads", "mlp_width")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights by their path in the encoder, and the tokens they are for."""

    folder: str
    tokenizer: Tokenizer
    weights: dict[str, np.ndarray]

    @property
    def max_length(self) -> int:
        """Positions that have an embedding."""
        return len(self.weights["embeddings/position/embedding"])

    @property
    def sha256(self) -> str:
        """Identifies the weights."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            digest.update(name.encode())
            digest.update(self.weights[name].tobytes())
        return digest.hexdigest()

    def into(self, encoder: PyTree) -> PyTree:
        """The weights in the structure of ``encoder``."""
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jnp.asarray(self.weights[_name(path)]), encoder
        )


def read(
    folder: str, model: Config, encoder_shapes: Callable[[int, int], PyTree]
) -> Pretrained:
    """Reads the work directory of a run.

    Args:
      folder: it has ``config.json``, ``tokenizer.json`` and ``params``.
      model: sizes that the run must have had.
      encoder_shapes: vocabulary, positions -> the weights that are needed, as shapes.

    Raises:
      UserError: not a finished run of task mlm, or another model.
    """
    workdir = inputs.local("config.data.pretrained", folder)
    field = f"config.data.pretrained={folder}"
    config = reading.read_config(workdir)
    if config.get("task") != "mlm":
        raise UserError(f"{field}: is a run of task {config.get('task')}, not of mlm")
    theirs = config.get("model", {})
    differing = [
        f"config.model.{name}={model[name]} here, {theirs.get(name)} there"
        for name in SIZES
        if theirs.get(name) != model[name]
    ]
    if differing:
        raise UserError(f"{field}: another model: {'; '.join(differing)}")
    params = workdir / folders.PARAMS_FOLDER
    if not params.is_dir():
        raise UserError(f"{field}: has no {params.name}; a finished run is needed")
    final = folders.final_record(workdir)  # none where the weights alone were copied
    changed = seals.broken(workdir, final) if final is not None else {}
    for name in (tokenizer.FILE, folders.PARAMS_FOLDER):
        if name in changed:
            raise UserError(f"{field}: {name} {changed[name]}")
    tokens = tokenizer.read(workdir / tokenizer.FILE)
    weights = _restore(params)
    found = Pretrained(folder, tokens, weights)
    positions = weights.get("embeddings/position/embedding", np.zeros(0))
    _check(field, weights, encoder_shapes(tokens.get_vocab_size(), len(positions)))
    return found


def _restore(folder: Path) -> dict[str, np.ndarray]:
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(folder.absolute()).item_metadata.tree
            # As NumPy: what devices the run had does not matter.
            as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
            arguments = jax.tree.map(lambda _: as_numpy, tree)
            params = checkpointer.restore(folder.absolute(), restore_args=arguments)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: not saved parameters ({reason:.200})") from None
    leaves, _ = jax.tree_util.tree_flatten_with_path(params.get("encoder", {}))
    return {_name(path): leaf for path, leaf in leaves}


def _check(field: str, weights: dict[str, np.ndarray], needed: PyTree) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(needed)
    shapes = {_name(path): leaf.shape for path, leaf in leaves}
    for name in sorted(shapes.keys() | weights.keys()):
        here = shapes.get(name, "nothing")
        there = weights[name].shape if name in weights else "nothing"
        if here != there:
            raise UserError(
                f"{field}: encoder/{name} is {there} there, {here} is needed"
            )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
