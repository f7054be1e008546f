"""What a finished run left, so that whoever uses it again sees if it has changed."""

import hashlib
import json
from pathlib import Path

from experiments.common import inputs
from experiments.common.json_files import Record
from experiments.data import tokenizer

METRICS_FILE = "metrics.jsonl"
PARAMS_FOLDER = "params"
MODEL_STATE_FOLDER = "model_state"
PREDICTIONS_FILE = "predictions.json"
# What the last record of a run has of the files beside it.
SEALED = (PARAMS_FOLDER, MODEL_STATE_FOLDER, PREDICTIONS_FILE, tokenizer.FILE)
FIELD = "seal"
PIECE = 2**20  # bytes that are read at once


def take(workdir: Path, final: Record) -> dict[str, str]:
    """The hashes of what a run leaves, before its last record is written.

    Args:
      workdir: folder of the run.
      final: that record, without the seal.
    """
    found = {name: _hash(workdir / name) for name in SEALED if _exists(workdir / name)}
    before = (workdir / METRICS_FILE).read_bytes()
    return {METRICS_FILE: _of_records(before, final), **found}


def broken(workdir: Path, final: Record) -> dict[str, str]:
    """What is no longer as the last record has it, by name: how it is now.

    A record of a version that had no seals tells nothing.
    """
    found = {}
    for name, sealed in final.get(FIELD, {}).items():
        if name == METRICS_FILE:
            is_same = sealed == _of_own_records(workdir / name, final)
        elif not _exists(workdir / name):
            found[name] = "is gone"
            continue
        else:
            is_same = sealed == _hash(workdir / name)
        if not is_same:
            found[name] = "is not what was saved"
    return found


def _exists(path: Path) -> bool:
    return path.is_dir() or path.is_file()


def _of_own_records(metrics: Path, final: Record) -> str:
    before, _, _ = metrics.read_bytes().rstrip(b"\0\n").rpartition(b"\n")
    rest = {name: value for name, value in final.items() if name != FIELD}
    return _of_records(before + b"\n" if before else b"", rest)


def _of_records(before: bytes, final: Record) -> str:
    """Of all records; the last one by its content, since its seal is a part of it."""
    digest = hashlib.sha256(before)
    digest.update(json.dumps(final, sort_keys=True).encode())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    for file in files:
        size = file.stat().st_size if file.is_file() else 0
        digest.update(f"{file.relative_to(path)}\0{size}\0".encode())
        if file.is_dir():
            continue
        with inputs.open_file(file) as content:
            while piece := content.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()
