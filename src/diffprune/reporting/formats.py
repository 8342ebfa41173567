"""Format metric names and values for people: the terminal and the report page use the same text."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

HIDDEN = ("history", "protocol", "blocks")
"""Entries of a result that have a layout of their own, or that are too long to print."""

TITLES = {
    "params": "parameters",
    "macs": "MACs",
    "attention_macs": "attention MACs",
    "latency_ms": "latency (ms)",
    "latency_before_ms": "latency before (ms)",
    "latency_after_ms": "latency after (ms)",
    "images_per_s": "images/s",
    "ssim": "SSIM",
    "mse": "MSE",
    "psnr": "PSNR (dB)",
    "lpips": "LPIPS",
    "fid": "FID",
    "sfid": "sFID",
    "kid": "KID",
    "kid_mean": "KID",
    "kid_std": "KID std",
    "inception_score_mean": "inception score",
    "inception_score_std": "inception score std",
    "clip_score": "CLIP score",
    "frechet_distance": "Fréchet distance",
    "num_images": "images",
    "num_reference_images": "reference images",
    "num_groups": "groups",
    "num_corrupt": "corrupt images",
    "class_name": "class",
    "helped": "compensation accepted",
    "layers_left": "layers not changed",
    "other_params_after": "parameters after, other plan",
    "other_macs_after": "MACs after, other plan",
}
"""Field of a result -> its title, where underscores to spaces is not enough."""

_EXPLANATIONS = (
    ({"macs"}, "MACs count the layers in one forward pass of one image."),
    ({"latency_ms"}, "Latency is the median time of one forward pass of one image."),
    ({"images_per_s"}, "images/s is the rate of the whole sampling run."),
    ({"ssim"}, "SSIM compares each image with the original's image from the same noise."),
    ({"mse"}, "MSE compares each image with the original's image from the same noise."),
    (
        {"frechet_distance"},
        "The Fréchet distance compares with real images by the features of the built-in digit classifier; "
        "it is not FID.",
    ),
)
"""Names of metrics -> how they are computed."""

_COSTS = ("params", "macs", "latency_ms", "images_per_s")


def title_of(name: str) -> str:
    """Return the title of a field, such as `FID` or `MACs before`."""
    if name in TITLES:
        return TITLES[name]
    for suffix in ("_before", "_after"):
        if name.endswith(suffix):
            return f"{title_of(name.removesuffix(suffix))} {suffix[1:]}"
    return name.replace("_", " ")


def text_of(name: str, value: Any) -> str:
    """Return a value as text: 1.113M parameters, 0.064G or 1.873M MACs, four significant digits of other numbers."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "macs" in name and isinstance(value, int):
        return f"{value / 1e9:.3f}G" if value >= 1e7 else f"{value / 1e6:.3f}M" if value else "0"
    if "params" in name and isinstance(value, int):
        return f"{value / 1e6:.3f}M" if value >= 1e4 else f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {text_of(k, v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(text_of(name, v) for v in value)
    return str(value)


def protocol_of(facts: Mapping[str, Any]) -> str:
    """Return a metric's protocol as one line: its hash, its facts, its note."""
    stated = [f"{title_of(name)} {value}" for name, value in facts.items() if name not in ("hash", "note")]
    note = f" ({facts['note']})" if "note" in facts else ""
    return f"{facts['hash']}: {', '.join(stated)}{note}"


def explanations_of(metrics: Collection[str]) -> list[str]:
    """Return one sentence per explained metric among `metrics`, which name the columns of a report."""
    return [text for names, text in _EXPLANATIONS if not names.isdisjoint(metrics)]


def change_of(name: str, value: Any, first: Any) -> str:
    """Return a cost relative to the first row's, such as 0.55x; empty for other metrics and for equal costs."""
    if name not in _COSTS or not first or not value or value == first:
        return ""
    return f"{value / first:.2f}x"


def block_of(path: str) -> str:
    """Return the block that a layer belongs to: the entry of a list, or in UNets of a list inside a level."""
    parts = path.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return ".".join(parts[:4])
    if parts[0] == "mid_block":
        return ".".join(parts[:3])
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]


def tables_and_figures(result: Mapping[str, Any]) -> tuple[list[list[Mapping[str, Any]]], dict[str, Any]]:
    """Return the lists of rows of a result, and all its other figures by name, without the `HIDDEN` ones."""
    tables, figures = [], dict[str, Any]()
    for name, value in result.items():
        if name in HIDDEN:
            continue
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            tables.append(value)
        elif isinstance(value, Mapping):
            figures |= value
        else:
            figures[name] = value
    return tables, figures


def cells_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the column names of rows, and their cells as text; costs with their ratio to the first row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = []
    for row in rows:
        changes = [change_of(name, row.get(name), rows[0].get(name)) for name in names]
        cells.append([text_of(n, row.get(n)) + f" ({c})" * bool(c) for n, c in zip(names, changes, strict=True)])
    return names, cells
