"""Every wrong input ends in one line: the lists are in `tests/wrong_inputs/`."""

import pytest

from tests.test_commands import ALL as COMMANDS
from tests.wrong_inputs import running

# ml_collections loads config files in a way that Python has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

ALL = running.entries()
QUICK = [entry for entry in ALL if not entry.is_slow]
FIRST = list({entry.command: entry for entry in reversed(QUICK)}.values())
# A twentieth, and one of each command.
OFTEN = QUICK[::18] + [entry for entry in FIRST if entry not in QUICK[::18]]


def check(entry, folder, capfd):
    ending = running.run(entry, folder, capfd)
    assert ending.status
    assert ending.stderr.startswith("error: ")
    assert ending.stderr.count("\n") == 1
    assert ending.stderr.endswith("\n")
    assert entry.expected in ending.stderr
    assert not ending.strays


@pytest.mark.parametrize("entry", OFTEN, ids=str)
def test_some_wrong_inputs_end_in_one_line(entry, tmp_path, capfd):
    check(entry, tmp_path, capfd)


@pytest.mark.nightly
@pytest.mark.parametrize("entry", ALL, ids=str)
def test_every_wrong_input_ends_in_one_line(entry, tmp_path, capfd):
    check(entry, tmp_path, capfd)


def test_there_are_hundreds_of_them_and_some_of_every_command():
    assert {entry.command for entry in ALL} == set(COMMANDS)
    assert {entry.command for entry in OFTEN} == {entry.command for entry in QUICK}
    assert len(ALL) >= 1000
    assert len(OFTEN) >= 50
    assert len({(e.command, e.arguments, e.prepare) for e in ALL}) == len(ALL)
