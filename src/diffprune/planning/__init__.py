"""Plans: which units of each group stay, and what the pruned model will cost."""

from diffprune.planning.allocation import allocate_uniform
from diffprune.planning.plan import Plan, fingerprint, read_plan

__all__ = ["Plan", "allocate_uniform", "fingerprint", "read_plan"]
