"""Metric protocols: the facts that must agree for two metric values, or two sets of statistics, to be comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from diffprune.errors import DataError

MetricValues = dict[str, float]
"""Metric name -> value; metrics with a spread have `_mean` and `_std`."""

MetricProtocols = dict[str, dict[str, Any]]
"""Metric name -> facts of its computation and their hash."""

UNKNOWN = "protocol unknown"
"""Recorded for a value that rests on a statistics file without a protocol, such as one of pytorch-fid."""

NATIVE = "native size, RGB"
"""Recorded for images that are not changed before the resize to the network's input."""


@dataclass(frozen=True)
class Protocol:
    """How features are computed from images.

    network: architecture and its year. weights: hash of the weights, see `hash_of_weights`. resize: `legacy`, `clean`
    or `tensorflow`, see `inception_inputs`. images: preprocessing before the resize, see `image_preparation`.
    """

    network: str
    weights: str
    resize: str
    images: str = NATIVE

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over all fields."""
        return hash_of_facts(asdict(self))

    def as_dict(self) -> dict[str, str]:
        """Return the fields and their hash."""
        return {**asdict(self), "hash": self.hash}

    def differences(self, other: "Protocol") -> str:
        """Return the differing fields, as `resize legacy instead of clean`; empty where all are equal."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return ", ".join(f"{name} {ours} instead of {theirs}" for name, ours, theirs in pairs if ours != theirs)


def read_protocol(facts: Mapping[str, Any]) -> Protocol:
    """Return the protocol that `Protocol.as_dict` wrote; raises ValueError for anything else."""
    known = {f.name for f in fields(Protocol)}
    if {*facts} != {*known, "hash"} or not all(isinstance(value, str) for value in facts.values()):
        raise ValueError(f"expected the facts {', '.join(sorted(known))} and hash, got {', '.join(sorted(facts))}")
    protocol = Protocol(**{name: facts[name] for name in known})
    if protocol.hash != facts["hash"]:
        raise ValueError(f"the hash is {facts['hash']}, expected {protocol.hash} for these facts")
    return protocol


def check_comparable(expected: Protocol | None, protocol: Protocol | None, source: str) -> None:
    """Raise DataError when both protocols are known and differ."""
    if expected is not None and protocol is not None and expected != protocol:
        raise DataError(
            f"{source} was computed by another protocol ({protocol.differences(expected)}), so the values cannot be "
            "compared; choose the same options, or compute the statistics again"
        )


def protocol_of_value(facts: Mapping[str, Any], *, note: str | None = None) -> dict[str, Any]:
    """Return the protocol of one metric value: its facts and their hash; the note is not hashed."""
    hashed = {name: value for name, value in facts.items() if name != "hash"}
    return {**hashed, "hash": hash_of_facts(hashed), **({"note": note} if note else {})}


def hash_of_facts(facts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of SHA-256 over the facts as sorted JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
