"""What glibc does with memory that a step has freed.

One setting for training and for benchmarks, so that a step costs the same in both.
"""

import ctypes
import gc
import sys

# Options of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed() -> None:
    """Stops glibc from returning the buffers of every step to the system.

    XLA allocates them anew in each step, and the first touch of each page costs more
    than many a step: 10,000 page faults a step of bert_tiny, a tenth of that with this;
    LARS took three times as long on ResNet-50. Arenas of other threads than the main
    one map whatever is larger than 64 MB, whatever the thresholds, so JAX's threads
    must have none: call this before JAX starts them.
    """
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_ARENA_MAX, 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def return_freed() -> None:
    """Returns it once: arrays of other sizes may not fit into its holes."""
    gc.collect()
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _libc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    # Another library than glibc has neither mallopt nor malloc_trim.
    return libc if hasattr(libc, "mallopt") else None
