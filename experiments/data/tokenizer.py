"""The file of a tokenizer, and what may be asked of one."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from experiments.common import files, inputs
from experiments.common.errors import UserError
from experiments.data import text

FILE = "tokenizer.json"
LARGEST_VOCABULARY = 2**20  # far above that the library aborts the whole process


def check_vocab_size(size: int) -> None:
    """Refuses vocabularies that cannot be trained.

    Raises:
      UserError: too small for the special tokens and one more, or far too large.
    """
    smallest = len(text.SPECIAL_TOKENS) + 1
    if not smallest <= size <= LARGEST_VOCABULARY:
        raise UserError(
            f"config.data.vocab_size={size}: must be in "
            f"[{smallest}, {LARGEST_VOCABULARY}]"
        )


def read_or_train(folder: Path, documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """The tokenizer in ``folder``, or a new one where there is none."""
    path = folder / FILE
    return read(path) if path.exists() else text.train_tokenizer(documents, vocab_size)


def read(path: Path) -> Tokenizer:
    """Reads a tokenizer.

    Raises:
      UserError: missing, something else, or one with other special tokens.
    """
    with inputs.needed(path, "the tokenizer of a run"):
        content = inputs.read_bytes(path)
    try:
        found = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower class
        raise UserError(f"{path}: not a tokenizer ({error})") from None
    for number, token in enumerate(text.SPECIAL_TOKENS):
        if found.token_to_id(token) != number:
            raise UserError(
                f"{path}: {token} is token {found.token_to_id(token)} there, {number} "
                "is needed"
            )
    return found


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a file that is whole or not there.

    Raises:
      UserError: not writable.
    """
    try:
        files.write_atomically(folder / FILE, tokenizer.to_str(pretty=True))
    except OSError as error:
        raise files.not_writable(folder, error) from None
