"""CLIP score: how well images fit their prompts. transformers is an optional dependency (extra `clip`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffprune.errors import DataError, ModelError
from diffprune.evaluation.network_weights import hash_of
from diffprune.evaluation.protocol import of_number


@dataclass(frozen=True)
class Clip:
    """A CLIP model on its device, its processor, and the hash of its weights."""

    name: str
    model: Any
    processor: Any
    weights: str

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """100 max(cos(image, prompt), 0) of each pair, (N,) (Hessel et al. 2021, eq. 1, with 100 for its 2.5).

        Prompts are cut at the length that the model takes.
        """
        inputs = self.processor(
            text=list(prompts),
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.model.device)
        found = self.model(**inputs)
        cosine = torch.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * cosine.clamp(min=0)

    def protocol(self, num_images: int) -> dict[str, object]:
        """How the number came about."""
        return of_number({"network": Path(self.name).name, "weights": self.weights, "num_images": num_images})


def load_clip(name: str, device: torch.device) -> Clip:
    """A CLIP model of transformers by hub id or folder; raises ModelError, also where transformers is missing."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ModelError("clip_score needs transformers: pip install 'diffprune[clip]'") from error
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = CLIPModel.from_pretrained(name)
        processor = CLIPProcessor.from_pretrained(name)
    except Exception as error:  # transformers raises a different class for each way a model can be broken
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load the CLIP model {name}: {first}; give a hub id or folder by --clip-model"
        ) from error
    return Clip(name, model.to(device).eval(), processor, hash_of(model.state_dict()))


def with_prompts(by_index: dict[int, Path], prompts: Sequence[str], num: int | None) -> list[tuple[Path, str]]:
    """The first `num` images and their prompts: the lines in turn, from index 0 on; raises DataError."""
    chosen = sorted(by_index)[:num]
    if num is not None and num > len(by_index):
        raise DataError(f"there are {len(by_index)} images, num asks for {num}")
    return [(by_index[index], prompts[index % len(prompts)]) for index in chosen]
