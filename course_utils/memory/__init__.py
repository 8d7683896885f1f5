"""Memory: what training needs (`estimate`), what it took (`measure`), and what fits (`plan`).

All figures are GiB (2^30 bytes).
"""

from .measure import (
    GIB,
    PHASES,
    MemoryMeter,
    MemoryReport,
    current_gib,
    device_name,
    memory_limit_gib,
)

__all__ = [
    "GIB",
    "PHASES",
    "MemoryMeter",
    "MemoryReport",
    "current_gib",
    "device_name",
    "memory_limit_gib",
]
