"""LPIPS of pairs: the learned perceptual distance of Zhang et al. 2018, by torchmetrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision import models

from diffprune.errors import DataError
from diffprune.evaluation.network_weights import fetch_weights, hash_of, must_fit, read_weights
from diffprune.evaluation.protocol import of_number

Backbone = Literal["alex", "vgg", "squeeze"]
BACKBONES: Mapping[Backbone, Any] = {
    "alex": ("alexnet", models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg": ("vgg16", models.VGG16_Weights.IMAGENET1K_V1),
    "squeeze": ("squeezenet1_1", models.SqueezeNet1_1_Weights.IMAGENET1K_V1),
}
"""Name -> torchvision's network and weights; the last part of the file's name is the start of its SHA-256."""

SMALLEST: Mapping[Backbone, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Smallest side in pixels that the backbone's pooling leaves something of."""

REMEDY = "download it elsewhere and give it with --lpips-weights FILE"


@dataclass(frozen=True)
class Perceptual:
    """The network of LPIPS in eval mode, on its device, and the hash of its weights."""

    name: Backbone
    network: nn.Module
    weights: str

    def distance(self, images: Tensor, reference: Tensor) -> Tensor:
        """LPIPS of each pair, (N,), of images (N, 1 or 3, H, W) in [0, 1]; raises DataError for tiny ones."""
        smallest = SMALLEST[self.name]
        if min(images.shape[-2:]) < smallest:
            height, width = images.shape[-2:]
            raise DataError(f"images of {height}x{width}; lpips with {self.name} needs at least {smallest}x{smallest}")
        with torch.no_grad():
            found: Tensor = self.network(_rgb(images), _rgb(reference), normalize=True)
        return found.flatten()

    def protocol(self, num_pairs: int) -> dict[str, object]:
        """How the number came about."""
        facts = {"network": f"lpips 0.1, {BACKBONES[self.name][0]}", "weights": self.weights, "num_pairs": num_pairs}
        return of_number(facts)


def load_perceptual(name: Backbone, path: Path | None, device: torch.device) -> Perceptual:
    """The network on the backbone `name`, whose weights come from a file or are fetched and checked.

    path: torchvision's state dict of the backbone. The linear weights (version 0.1) come with torchmetrics.
    Raises ModelError.
    """
    architecture, published = BACKBONES[name]
    if path is None:
        start = published.url.rpartition("-")[2].removesuffix(".pth")
        path = fetch_weights(published.url, start, remedy=REMEDY)
    state = read_weights(path)
    with torch.random.fork_rng(devices=[]):
        network = _LPIPS(net=name, pnet_rand=True)
    with must_fit(str(path), f"torchvision's weights of {architecture}"):
        _load_backbone(network.net, state)
    return Perceptual(name, network.to(device), hash_of(network.state_dict()))


def _load_backbone(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `features.N.*` into the slices that LPIPS cuts the backbone into; layers keep their numbers there."""
    for piece in net.modules():
        if isinstance(piece, nn.Sequential):
            for number, layer in piece.named_children():
                start = f"features.{number}."
                layer.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
