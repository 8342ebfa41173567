"""Versions, platform and memory of this process, for `run.json`."""

import os
import platform
import re
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("diffprune", "torch", "diffusers", "torch-pruning", "accelerate", "safetensors")


def environment() -> dict[str, Any]:
    """Return the UTC time, package versions, platform and git commit of the working folder."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), **_versions()},
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "git_commit": _git_commit(),
    }


def peak_memory_mb() -> int:
    """Return the peak resident memory of this process so far, in MB (1e6 bytes)."""
    status = Path("/proc/self/status")
    high_water = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    if high_water is not None:  # on Linux, ru_maxrss includes the parent's memory at the time of the fork
        return int(int(high_water[1]) * 1024 / 1e6)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    try:
        process = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
