"""Figures as people read them; one way for the terminal and the page."""

from collections.abc import Mapping
from typing import Any

NAMES = {
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
    "class_name": "class",
    "other_params_after": "parameters of the other",
    "other_macs_after": "MACs of the other",
}


def title_of(name: str) -> str:
    """A figure's name for people."""
    for suffix in ("_before", "_after"):
        if name.endswith(suffix):
            return f"{title_of(name.removesuffix(suffix))} {suffix[1:]}"
    return NAMES.get(name, name.replace("_", " "))


def text_of(name: str, value: Any) -> str:
    """A figure's value for people: 1.113M parameters, 0.064G MACs, four significant digits elsewhere."""
    if value is None or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "macs" in name and isinstance(value, int):
        return f"{value / 1e9:.3f}G"
    if "params" in name and isinstance(value, int):
        return f"{value / 1e6:.3f}M"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {text_of(k, v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return " | ".join(text_of(name, v) for v in value)
    return str(value)


def protocol_of(facts: Mapping[str, Any]) -> str:
    """How a number came about, in one line: its facts, the hash in front, the note last."""
    rest = [f"{title_of(name)} {value}" for name, value in facts.items() if name not in ("hash", "note")]
    note = f" ({facts['note']})" if "note" in facts else ""
    return f"{facts['hash']}: {', '.join(rest)}{note}"


def change_of(name: str, value: Any, first: Any) -> str:
    """A cost relative to the first row's, such as 0.55x; empty for other figures."""
    if name not in ("params", "macs", "latency_ms", "images_per_s") or not first or not value or value == first:
        return ""
    return f"{value / first:.2f}x"


def block_of(path: str) -> str:
    """The block that a layer belongs to: the entry of a list, or of a list below it in UNets."""
    parts = path.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return ".".join(parts[:4])
    if parts[0] == "mid_block":
        return ".".join(parts[:3])
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
