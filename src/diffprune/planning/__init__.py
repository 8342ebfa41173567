"""Planning: choose the units to keep by score and budget, and forecast the cost of the pruned model."""

from diffprune.planning.allocation import allocate, check_patterns
from diffprune.planning.fingerprints import fingerprint
from diffprune.planning.plan import Plan, read_plan
from diffprune.planning.planner import make_plan, resolve_auto
from diffprune.planning.prepared import Prepared, prepare
from diffprune.planning.rounds import choose_units, score

__all__ = [
    "Plan",
    "Prepared",
    "allocate",
    "check_patterns",
    "choose_units",
    "fingerprint",
    "make_plan",
    "prepare",
    "read_plan",
    "resolve_auto",
    "score",
]
