"""Copy the model card and licenses of a model to a pruned one, with a paragraph on the pruning."""

import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from diffprune.pipelines.builtin import PIPELINES
from diffprune.pipelines.model_source import is_hub_id
from diffprune.runs.atomic_files import atomic_write

CARD = "README.md"
_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")


def copy_model_card(source: str, folder: Path, paragraph: str) -> None:
    """Copy license files and the model card of MODEL into `folder`; append `paragraph` to the card."""
    origin = PIPELINES.get(source, Path(source))
    if is_hub_id(source):
        origin = _fetch(source) or origin
    for pattern in _LICENSES:
        for file in sorted(origin.glob(pattern)) if origin.is_dir() else []:
            shutil.copyfile(file, folder / file.name)
    before = (origin / CARD).read_text().rstrip() + "\n\n" if (origin / CARD).is_file() else ""
    atomic_write(folder / CARD, f"{before}{paragraph.strip()}\n")


def _fetch(source: str) -> Path | None:
    try:
        return Path(snapshot_download(source, allow_patterns=[CARD, *_LICENSES]))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError):
        return None
