"""The code that type checkers are shown does run."""

import pytest

from tests.typed import user_code


@pytest.mark.parametrize("name", ["guarded", "guarded, accumulated"])
def test_it_trains(name):
    params = user_code.train(user_code.optimizers()[name], 4)
    assert all(float(w.ravel()[0]) < 1 for w in params.values())


def test_it_reports():
    threshold, found = user_code.reports()
    assert threshold > 1e38  # none yet
    assert found["clipped_norm"] == 0.0
