"""Memory: what training needs (`estimate`), what it took (`measure`), what fits (`plan`).

`measured` has what it took on a real GPU, as shipped.  All figures are GiB (2^30 bytes).
"""

from .estimate import Estimate, estimate
from .measure import (
    GIB,
    PHASES,
    MemoryMeter,
    MemoryReport,
    current_gib,
    device_name,
    free_memory,
    limit_memory,
    limited_memory,
    memory_limit_gib,
    others_on_card_gib,
    process_memory_gib,
)
from .measured import Measured, measured, measured_rows
from .plan import Choice, Plan, plan, plan_recipe
from .shapes import Shape, shape_of

__all__ = [
    "Choice",
    "Estimate",
    "GIB",
    "PHASES",
    "Plan",
    "Measured",
    "MemoryMeter",
    "MemoryReport",
    "Shape",
    "current_gib",
    "device_name",
    "estimate",
    "free_memory",
    "limit_memory",
    "limited_memory",
    "measured",
    "measured_rows",
    "memory_limit_gib",
    "others_on_card_gib",
    "plan",
    "plan_recipe",
    "process_memory_gib",
    "shape_of",
]
