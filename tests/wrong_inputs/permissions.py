"""What the superuser may not do either, while a test asks for it."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

# Of capabilities(7): to pass over the permissions of files, and of folders.
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")
    ]


@contextlib.contextmanager
def as_others() -> Iterator[None]:
    """Within it permissions bind this thread, also if it is the superuser's."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = _Header(VERSION_3, 0)
    found = (_Sets * 2)()
    _checked(libc.capget(ctypes.byref(header), found))
    before = found[0].effective
    found[0].effective &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    _checked(libc.capset(ctypes.byref(header), found))
    try:
        yield
    finally:
        found[0].effective = before
        _checked(libc.capset(ctypes.byref(header), found))


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "capabilities")
