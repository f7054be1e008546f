"""The state of a training on the disk: whole and unchanged, or refused."""

import hashlib
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import files, inputs
from experiments.common.errors import UserError, one_line

FILE = "checkpoint.npz"
_DIGEST = hashlib.sha256().digest_size


def write(path: Path, state: Any) -> None:
    """Writes the arrays of a state behind a hash of them."""
    content = io.BytesIO()
    leaves = jax.tree.leaves(state)
    arrays: dict[str, Any] = {f"{i}": np.asarray(x) for i, x in enumerate(leaves)}
    np.savez(content, **arrays)
    data = content.getvalue()
    try:
        files.write_atomically(path, hashlib.sha256(data).digest() + data)
    except OSError as error:
        raise files.not_writable(path.parent, error) from None


def read(path: Path, like: Any) -> Any:
    """The state in a file, of the arrays that ``like`` has; ``None`` without a file.

    Raises:
      UserError: the file is damaged, or has another state.
    """
    if not path.exists():
        return None
    with inputs.needed(path, "a checkpoint"):
        content = inputs.read_bytes(path)
    digest, data = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(data).digest() != digest:
        raise UserError(f"{path}: is damaged; delete it to start anew")
    leaves, treedef = jax.tree.flatten(like)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = [arrays[f"{i}"] for i in range(len(arrays.files))]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: no checkpoint ({one_line(error)})") from None
    kinds = [(jnp.shape(x), jnp.result_type(x)) for x in leaves]
    if [(x.shape, x.dtype) for x in found] != kinds:
        raise UserError(f"{path}: is of another program; delete it to start anew")
    return treedef.unflatten(map(jnp.asarray, found))
