"""Plans: which units of each group stay, and what the pruned model will cost."""

from diffprune.planning.allocation import allocate, check_patterns
from diffprune.planning.plan import Plan, fingerprint, read_plan
from diffprune.planning.rounds import choose_units, score

__all__ = ["Plan", "allocate", "check_patterns", "choose_units", "fingerprint", "read_plan", "score"]
