"""How a number came about: what must agree for two numbers, or two sets of statistics, to be comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

UNKNOWN = "protocol unknown"
"""What stands beside numbers that rest on a statistics file of someone else."""

NATIVE = "native size, RGB"
"""What a protocol says of images that nothing is done to before the network's own resize."""


@dataclass(frozen=True)
class Protocol:
    """How images became features.

    network: architecture and its year. weights: hash of their values (`weights.hash_of`). resize: `legacy`, `clean`
    or `tensorflow` (`inputs`). images: what was done to the images before (`preparation`).
    """

    network: str
    weights: str
    resize: str
    images: str = NATIVE

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that stand for all of it."""
        return hash_of_facts(asdict(self))

    def as_dict(self) -> dict[str, str]:
        """The facts and their hash."""
        return {**asdict(self), "hash": self.hash}

    def differences(self, other: "Protocol") -> str:
        """What differs, as `resize legacy instead of clean`; empty where nothing does."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return ", ".join(f"{name} {mine} instead of {theirs}" for name, mine, theirs in pairs if mine != theirs)


def read_protocol(facts: Mapping[str, Any]) -> Protocol:
    """The protocol that `as_dict` wrote; raises ValueError for anything else."""
    known = {f.name for f in fields(Protocol)}
    if {*facts} != {*known, "hash"} or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError(f"expected the facts {', '.join(sorted(known))} and hash, got {', '.join(sorted(facts))}")
    protocol = Protocol(**{name: facts[name] for name in known})
    if protocol.hash != facts["hash"]:
        raise ValueError("its facts do not have the hash that stands beside them")
    return protocol


def of_number(facts: Mapping[str, Any], *, note: str | None = None) -> dict[str, Any]:
    """The protocol of one number: the facts and their hash; a note for people does not enter the hash."""
    whole = {name: value for name, value in facts.items() if name != "hash"}
    return {**whole, "hash": hash_of_facts(whole), **({"note": note} if note else {})}


def hash_of_facts(facts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of SHA-256 over the facts as sorted JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
