"""Types that several modules name."""

from typing import Any

# An ml_collections.ConfigDict. As Any, since type checkers cannot see its fields.
Config = Any
