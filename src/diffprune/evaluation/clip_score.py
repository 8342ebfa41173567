"""CLIP score: similarity of images to their prompts. Needs transformers (optional dependency, extra `clip`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diffprune.errors import DataError, ModelError
from diffprune.evaluation.network_weights import hash_of_weights
from diffprune.evaluation.protocol import protocol_of_value


@dataclass(frozen=True)
class Clip:
    """A CLIP model on its device, its processor, and the hash of its weights."""

    name: str
    model: Any
    processor: Any
    weights: str

    @torch.no_grad()
    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """Return 100 max(cos(image, prompt), 0) of each pair, (N,) (Hessel et al. 2021, eq. 1, with 100 for 2.5).

        Prompts are truncated to the maximum length of the model.
        """
        inputs = self.processor(
            text=list(prompts),
            images=[image.convert("RGB") for image in images],
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.model.device)
        output = self.model(**inputs)
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        return 100 * cosine.clamp(min=0)

    def protocol(self, num_images: int) -> dict[str, object]:
        """Return the protocol of a score over `num_images` images."""
        return protocol_of_value({"network": Path(self.name).name, "weights": self.weights, "num_images": num_images})


def load_clip(name: str, device: torch.device) -> Clip:
    """Load a CLIP model of transformers by hub id or folder; raises ModelError, also without transformers."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise ModelError("clip_score needs transformers; run pip install 'diffprune[clip]'") from error
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = CLIPModel.from_pretrained(name)
        processor = CLIPProcessor.from_pretrained(name)
    except Exception as error:  # transformers raises many classes, one for each kind of broken model
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot load the CLIP model {name}: {first}; set --clip-model to a hub id or folder"
        ) from error
    return Clip(name, model.to(device).eval(), processor, hash_of_weights(model.state_dict()))


def prompted_images(by_index: dict[int, Path], prompts: Sequence[str], num: int | None) -> list[tuple[Path, str]]:
    """Return the first `num` images with their prompts (None: all); image i has prompt i modulo their number.

    Raises DataError when there are fewer images.
    """
    chosen = sorted(by_index)[:num]
    if num is not None and num > len(by_index):
        raise DataError(f"there are {len(by_index)} images, but num is {num}; set num to at most {len(by_index)}")
    return [(by_index[index], prompts[index % len(prompts)]) for index in chosen]
