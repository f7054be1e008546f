"""The files of the oracles are what their programs make."""

import numpy as np
import pytest

from tests.oracles import methods, trajectories
from tests.oracles.units import norm


@pytest.mark.parametrize("n", [0.0, 3.0, 1e-200, 1e200])
def test_a_norm_neither_overflows_nor_underflows(n):
    assert norm(np.array([0.6, -0.8]) * n) == pytest.approx(n, rel=1e-15)


@pytest.mark.parametrize(
    "case", methods.CASES[::7], ids=lambda case: "__".join(case[:2])
)
def test_stored_trajectories_are_what_the_program_makes(case):
    """Bits on the machine that made them; elsewhere exp and log may differ by one."""
    family = case.families.split()[0]
    arrays, meta = trajectories.trajectory(case, family, methods.build)
    with np.load(trajectories.FOLDER / f"{meta['name']}.npz") as stored:
        assert set(stored.files) == set(arrays)
        for key, want in arrays.items():
            if key.startswith(("grads/", "params0/", "extra/")):
                np.testing.assert_array_equal(stored[key], want, err_msg=key)
            for got, now in zip(stored[key], want, strict=True):
                assert trajectories.error(got, now) <= meta["rtol_float64"] / 10, key


def test_every_case_has_its_files_and_no_other():
    names = sorted(
        f"{case.algorithm}__{case.configuration}__{family}"
        for case in methods.CASES
        for family in case.families.split()
    )
    assert len(set(names)) == len(names)
    for suffix in (".npz", ".json"):
        assert names == sorted(p.stem for p in trajectories.FOLDER.glob(f"*{suffix}"))
