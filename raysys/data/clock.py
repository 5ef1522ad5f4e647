"""The present, in the unit of every time in this project."""

import time


def now_us() -> int:
    """µs since the epoch, UTC."""
    return time.time_ns() // 1_000
