"""Files of data sets that are not part of the project, each known by its hash."""

import hashlib
from pathlib import Path

from experiments.common.errors import UserError

SHA256 = {
    "cifar10/cifar10.tar.xz": (
        "9fa9370bcbebc1a110f00d8be38306df9766017cfc775890e4bba42222513898"
    ),
    "wikitext2/test.txt": (
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"
    ),
    "wikitext2/valid.txt": (
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"
    ),
    "xquad/xquad.en.json": (
        "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29"
    ),
}


def find(folder: Path, name: str) -> Path:
    """The path of a file, once its hash is seen to be right.

    Raises:
      UserError: missing, or another file.
    """
    path = folder / name
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; --data names the folder of {name}, see "
            "docs/evidence/protocol.md"
        ) from None
    if digest != SHA256[name]:
        raise UserError(f"{path}: another file, of sha256 {digest}, not {SHA256[name]}")
    return path
