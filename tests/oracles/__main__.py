"""Makes the reference trajectories again, or says which differ from those stored."""

import argparse
import sys

import numpy as np

from tests.oracles import methods, trajectories


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.oracles", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    made, differing = set(), []
    for arrays, meta in methods.all_trajectories():
        made.add(meta["name"])
        if not check:
            trajectories.write(arrays, meta)
        elif not _equals_stored(arrays, meta):
            differing.append(meta["name"])
    stored = {path.stem for path in trajectories.FOLDER.glob("*.npz")}
    if check:
        differing += sorted((made ^ stored) - set(differing))
        sys.exit("\n".join(differing) if differing else 0)
    for name in stored - made:
        for suffix in (".npz", ".json"):
            (trajectories.FOLDER / f"{name}{suffix}").unlink()


def _equals_stored(arrays, meta):
    """Whether the stored arrays and description are the same, to the last bit."""
    path = trajectories.FOLDER / f"{meta['name']}.npz"
    if not path.exists():
        return False
    with np.load(path) as stored:
        same = set(stored.files) == set(arrays) and all(
            stored[key].dtype == x.dtype and stored[key].tobytes() == x.tobytes()
            for key, x in arrays.items()
        )
    return same and path.with_suffix(".json").read_text() == trajectories.as_text(meta)


if __name__ == "__main__":
    main()
