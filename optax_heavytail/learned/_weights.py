"""Weights in files, without pickle, and those that come with the package."""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from optax_heavytail.learned import _lstm, _mlp

_ABOUT = "about"  # a JSON object, as bytes
_LARGEST = 2**20  # bytes of a file; both networks have less than 30,000
# The version of what the numbers mean: of features, the order of gates, decays.
_VERSIONS = {"lstm": 1, "mlp": 1}
_KINDS = {"lstm": _lstm.LSTMWeights, "mlp": _mlp.MLPWeights}


class WeightsError(ValueError):
    """A file that has no weights which this version can use; one line says why."""


def names() -> tuple[str, ...]:
    """The weights that come with the package.

    Returns:
      Their names, for `load` and `about`.

    Example:
      >>> import optax_heavytail as oht
      >>> "lstm_quadratic" in oht.learned.names()
      True
    """
    files = (path.name for path in _folder().iterdir())
    return tuple(sorted(x.removesuffix(".npz") for x in files if x.endswith(".npz")))


def load(name_or_path: str | os.PathLike[str]) -> Any:
    """Weights of a name or a file.

    Args:
      name_or_path: one of `names`, or the path of a file that `save` wrote, which ends
        with ``.npz``.

    Returns:
      `LSTMWeights` or `MLPWeights` of NumPy arrays in float32.

    Raises:
      WeightsError: there is none, or it is truncated, pickled, of another version, has
        other arrays or shapes, or a number that is not finite. Nothing in a file is
        ever executed.

    Example:
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.load("lstm_quadratic")
      >>> weights.w_1.shape, str(weights.w_1.dtype)
      ((21, 80), 'float32')
    """
    return _read(name_or_path)[0]


def about(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """What weights were trained on, as `save` was told.

    Args:
      name_or_path: as for `load`.

    Returns:
      A JSON object with ``model``, ``version`` and whatever the training wrote.

    Raises:
      WeightsError: as `load`.

    Example:
      >>> import optax_heavytail as oht
      >>> oht.learned.about("lstm_quadratic")["model"]
      'lstm'
    """
    return _read(name_or_path)[1]


def save(
    path: str | os.PathLike[str],
    weights: _lstm.LSTMWeights | _mlp.MLPWeights,
    about: Mapping[str, Any],
) -> None:
    """Writes weights into a file, which is whole or not there.

    Args:
      path: of the file; its name ends with ``.npz``.
      weights: of `init_lstm` or `init_mlp`, or trained ones.
      about: what is to be known of them: an object of JSON.

    Raises:
      WeightsError: a number is not finite, a shape is none of the network's, the name
        ends otherwise, or ``about`` has ``model`` or ``version``, which are added.
      TypeError: ``weights`` are none, or ``about`` has what is not JSON.

    Example:
      >>> import pathlib, tempfile
      >>> import jax
      >>> import optax_heavytail as oht
      >>> weights = oht.learned.init_mlp(jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder) / "mine.npz"
      ...     oht.learned.save(path, weights, {"steps": 3})
      ...     oht.learned.about(path)
      {'model': 'mlp', 'version': 1, 'steps': 3}
    """
    path = Path(path)
    model = next((m for m, kind in _KINDS.items() if isinstance(weights, kind)), None)
    if model is None:
        raise TypeError(
            f"weights must be LSTMWeights or MLPWeights, got {type(weights).__name__}."
        )
    if path.suffix != ".npz":
        raise WeightsError(f"{path}: the name of a file of weights must end with .npz")
    taken = [name for name in ("model", "version") if name in about]
    if taken:
        raise WeightsError(f"about[{taken[0]!r}]: is added, and must not be there")
    arrays = {name: np.asarray(x, np.float32) for name, x in weights._asdict().items()}
    _checked(arrays, model, str(path))
    said = {"model": model, "version": _VERSIONS[model], **about}
    text = json.dumps(said, allow_nan=False).encode()
    content = io.BytesIO()
    packed: dict[str, Any] = {**arrays, _ABOUT: np.frombuffer(text, np.uint8)}
    np.savez(content, **packed)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content.getvalue())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _folder() -> Any:
    return resources.files("optax_heavytail.learned") / "weights"


def _read(name_or_path):
    where = os.fspath(name_or_path)
    if where in names():
        content = (_folder() / f"{where}.npz").read_bytes()
    elif where.endswith(".npz"):
        content = _content(where)
    else:
        raise WeightsError(
            f"{where}: must be one of {', '.join(names())}, or a file that ends with "
            ".npz"
        )
    arrays = _arrays(content, where)
    said = _said(arrays.pop(_ABOUT, None), where)
    model = said.get("model")
    if model not in _KINDS:
        raise WeightsError(f"{where}: has weights of {model!r}, not of lstm or mlp")
    if said.get("version") != _VERSIONS[model]:
        raise WeightsError(
            f"{where}: has version {said.get('version')!r} of {model}, this package "
            f"reads {_VERSIONS[model]}"
        )
    return _KINDS[model](**_checked(arrays, model, where)), said


def _content(where):
    try:
        with open(where, "rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:  # a zero byte in the path is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"{where}: {reason}; a file of weights is needed") from None
    if len(content) > _LARGEST:
        raise WeightsError(f"{where}: has more than {_LARGEST} bytes; weights have not")
    return content


def _arrays(content, where):
    """All arrays of a file, in which objects, that could run code, are refused."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > _LARGEST:
            raise WeightsError(
                f"{where}: unpacks to {total} bytes; weights have at most {_LARGEST}"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except WeightsError:
        raise
    except Exception as error:  # whatever a damaged or foreign file leads to
        text = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{where}: is no whole file of weights ({text})") from None


def _said(packed, where):
    try:
        said = json.loads(bytes(packed))
    except (TypeError, ValueError):
        said = None
    if not isinstance(said, dict):
        raise WeightsError(f"{where}: does not say what its weights are of")
    return said


def _checked(arrays, model, where):
    kind = _KINDS[model]
    odd = sorted({*arrays} ^ {*kind._fields})
    if odd:
        verb = "has" if odd[0] in arrays else "lacks"
        raise WeightsError(f"{where}: {verb} the array {odd[0]}")
    known = _known_shapes(model, arrays)
    for name, shape in zip(kind._fields, known, strict=True):
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise WeightsError(
                f"{where}: {name} must be float32 of shape {shape}, found "
                f"{array.dtype} of shape {array.shape}"
            )
        if not np.all(np.isfinite(array)):
            raise WeightsError(f"{where}: {name} has a number that is not finite")
    return arrays


def _known_shapes(model, arrays):
    if model == "mlp":
        return _mlp.SHAPES
    # Of either preprocessing; one that is neither is compared with the usual one.
    rows = arrays["w_1"].shape[:1]
    none = _lstm.shapes("none")
    return none if rows == none[0][:1] else _lstm.shapes("log")
