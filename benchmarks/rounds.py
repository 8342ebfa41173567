"""Shared by all benchmarks: run ways in turn, take medians of seconds, write the record."""

import argparse
import json
import os
import platform
import re
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

from diffprune.compute.autocast import is_fast_in_bf16
from diffprune.compute.device import pick_device
from diffprune.pipelines.builtin import ARCHITECTURES
from diffprune.pipelines.loading import load_pipeline

MODELS = ("digits", "ddpm-cifar10")
SIZES = {
    "dit-s-2": partial(
        DiTTransformer2DModel,
        num_attention_heads=6, attention_head_dim=64, num_layers=12, sample_size=32, in_channels=4, out_channels=8,
    ),
    "sd-1.5": partial(UNet2DConditionModel, sample_size=64, cross_attention_dim=768),
}  # fmt: skip
"""Random-weight denoisers: DiT-S/2 (Peebles and Xie 2023, table 1), and the UNet of SD 1 (Rombach et al. 2022)."""

PACKAGES = ("diffprune", "torch", "diffusers", "accelerate", "numpy", "scipy")


@dataclass(frozen=True)
class Seconds:
    """Seconds of wall time, and of CPU time of this process and its finished child processes."""

    wall: float
    cpu: float

    def __sub__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.wall - other.wall, self.cpu - other.cpu)

    def __truediv__(self, number: float) -> "Seconds":
        return Seconds(self.wall / number, self.cpu / number)


@dataclass(frozen=True)
class Row:
    """One row of the table: our value against a baseline and a target.

    ratio: of ours to the baseline, compared with the target; without it our value is compared. cpu_ratio: the same in
    CPU time. target: the target, a minimum, or with at_most a maximum.
    """

    row: str
    unit: str
    ours: float
    target: float
    baseline: float | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool:
        value = self.ours if self.ratio is None else self.ratio
        return value <= self.target if self.at_most else value >= self.target


HEAD = "| row | ours | baseline | ratio | in CPU time | target | reached |\n|---|---|---|---|---|---|---|\n"


def seconds(work: Callable[[], Any]) -> Seconds:
    """Measure a function, including its work on a GPU."""
    _wait_for_gpu()
    wall, cpu = time.perf_counter(), _cpu()
    work()
    _wait_for_gpu()
    return Seconds(time.perf_counter() - wall, _cpu() - cpu)


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def alternate(measures: Mapping[str, Callable[[], Seconds]], num_rounds: int) -> dict[str, list[Seconds]]:
    """Run every way once per round, in turn; the order is reversed every other round."""
    found: dict[str, list[Seconds]] = {name: [] for name in measures}
    for number in range(num_rounds):
        for name in list(measures)[:: -1 if number % 2 else 1]:
            found[name].append(measures[name]())
            print(f"round {number + 1}, {name}: {found[name][-1].wall:.3f} s", flush=True)
    return found


def medians(found: Mapping[str, Sequence[Seconds]]) -> dict[str, Seconds]:
    return {name: Seconds(median(s.wall for s in times), median(s.cpu for s in times)) for name, times in found.items()}


def faster(
    row: str, ours: Seconds, baseline: Seconds, target: float, unit: str = "s", amount: float | None = None
) -> Row:
    """Return the row of a speedup. amount: work done in the time, to show a rate instead of seconds."""
    values = [s.wall if amount is None else amount / s.wall for s in (ours, baseline)]
    return Row(row, unit, values[0], target, values[1], baseline.wall / ours.wall, baseline.cpu / ours.cpu)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return recorded rows as a Markdown table."""
    return HEAD + "\n".join(_line(row) for row in rows) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"

    ratios = [f"{cell(row[name])}{'' if row[name] is None else 'x'}" for name in ("ratio", "cpu_ratio")]
    target = f"at {'most' if row['at_most'] else 'least'} {cell(row['target'])}" + ("x" if ratios[0] else "")
    cells = [f"{cell(row['ours'])} {row['unit']}", cell(row["baseline"]), *ratios, target]
    return f"| {row['row']} | " + " | ".join(cells) + f" | {'yes' if row['reached'] else 'no'} |"


def arguments(
    parser: argparse.ArgumentParser, quick: Mapping[str, Any], *, of_each_model: Sequence[str] = ()
) -> argparse.Namespace:
    """Add --out, --rounds and --quick, and parse. quick: the defaults under --quick.

    of_each_model: options with one value per entry of --models.
    """
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of every way")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, which only show that the script runs")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**{"rounds": 1, **quick})
    a = parser.parse_args()
    for name in of_each_model:
        if len(getattr(a, name)) != len(a.models):
            parser.error(f"--{name.replace('_', '-')}: give one value for each of --models {' '.join(a.models)}")
    return a


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, used by both ways."""
    parser.add_argument("--device", default="cpu", help="torch device of both ways")


def record(
    name: str, a: argparse.Namespace, found: Mapping[str, Sequence[Seconds]], rows: Sequence[Row], **more: Any
) -> None:
    """Write OUT/NAME.json and OUT/NAME.md, and print the latter. found: way -> seconds of each round."""
    recorded_rows = [{**asdict(row), "reached": row.reached} for row in rows]
    contents = {
        "options": {key: value for key, value in vars(a).items() if key != "out"}, "rows": recorded_rows,
        "rounds": {way: [[s.wall, s.cpu] for s in times] for way, times in found.items()},
        "medians": {way: [s.wall, s.cpu] for way, s in medians(found).items()}, **facts(), **more,
    }  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / f"{name}.json").write_text(json.dumps(contents, indent=1) + "\n")
    ways = [f"| {way} | {s.wall:.3g} | {s.cpu:.3g} |\n" for way, s in medians(found).items()]
    text = table(recorded_rows) + "\n| way | s | CPU s |\n|---|---|---|\n" + "".join(ways)
    (a.out / f"{name}.md").write_text(text)
    print(text)


def facts() -> dict[str, Any]:
    """Return date, machine, threads and versions of a measurement."""
    return {
        "date": str(date.today()), "machine": _machine(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "mixed_precision_auto": "bf16" if is_fast_in_bf16(pick_device("auto")) else "no",
        "python": platform.python_version(), **{name: version(name) for name in PACKAGES},
    }  # fmt: skip


def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores of {names[0] if names else 'unknown'}"


def pipeline_named(name: str) -> Any:
    """Load a pipeline by name or folder; an architecture without weights gets random ones from a fixed seed."""
    if name not in ARCHITECTURES:
        return load_pipeline(name)
    torch.manual_seed(0)
    return DDPMPipeline(UNet2DModel.from_config(ARCHITECTURES[name]).eval(), DDPMScheduler())


def denoiser_named(name: str) -> Any:
    """Return a denoiser in eval mode: one of `SIZES` with random weights, or that of `pipeline_named`."""
    if name not in SIZES:
        return pipeline_named(name).unet.eval()
    torch.manual_seed(0)
    return SIZES[name]().eval()
