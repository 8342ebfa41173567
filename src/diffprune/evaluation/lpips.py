"""LPIPS of image pairs: the learned perceptual distance of Zhang et al. 2018, computed by torchmetrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision import models

from diffprune.errors import DataError
from diffprune.evaluation.network_weights import explain_mismatch, fetch_weights, hash_of_weights, read_weights
from diffprune.evaluation.protocol import protocol_of_value

Backbone = Literal["alex", "vgg", "squeeze"]
BACKBONES: Mapping[Backbone, Any] = {
    "alex": ("alexnet", models.AlexNet_Weights.IMAGENET1K_V1),
    "vgg": ("vgg16", models.VGG16_Weights.IMAGENET1K_V1),
    "squeeze": ("squeezenet1_1", models.SqueezeNet1_1_Weights.IMAGENET1K_V1),
}
"""Name -> torchvision's network and weights; the end of the weights' file name is the start of their SHA-256."""

SMALLEST: Mapping[Backbone, int] = {"alex": 31, "vgg": 16, "squeeze": 17}
"""Smallest supported side in pixels: below it, the backbone's pooling has empty output."""

REMEDY = "download the file elsewhere and set --lpips-weights FILE"


@dataclass(frozen=True)
class Lpips:
    """The network of LPIPS in eval mode, on its device, and the hash of its weights."""

    name: Backbone
    network: nn.Module
    weights: str

    def distance(self, images: Tensor, reference: Tensor) -> Tensor:
        """Return LPIPS of each pair, (N,), of images (N, 1 or 3, H, W) in [0, 1].

        Raises DataError for images that are smaller than the backbone supports.
        """
        smallest = SMALLEST[self.name]
        if min(images.shape[-2:]) < smallest:
            height, width = images.shape[-2:]
            raise DataError(
                f"images have {height}x{width} pixels; lpips with {self.name} needs at least {smallest}x{smallest}"
            )
        with torch.no_grad():
            distance: Tensor = self.network(_rgb(images), _rgb(reference), normalize=True)
        return distance.flatten()

    def protocol(self, num_pairs: int) -> dict[str, object]:
        """Return the protocol of a mean over `num_pairs` pairs."""
        facts = {"network": f"lpips 0.1, {BACKBONES[self.name][0]}", "weights": self.weights, "num_pairs": num_pairs}
        return protocol_of_value(facts)


def load_lpips(name: Backbone, path: Path | None, device: torch.device) -> Lpips:
    """Load the network on the backbone `name`.

    path: torchvision's state dict of the backbone; None downloads it and checks its hash. The linear weights
    (version 0.1) are part of torchmetrics.
    Raises ModelError.
    """
    architecture, published = BACKBONES[name]
    if path is None:
        start = published.url.rpartition("-")[2].removesuffix(".pth")
        path = fetch_weights(published.url, start, remedy=REMEDY)
    state = read_weights(path)
    with torch.random.fork_rng(devices=[]):
        network = _LPIPS(net=name, pnet_rand=True)
    with explain_mismatch(str(path), f"torchvision's weights of {architecture}"):
        _load_backbone(network.net, state)
    return Lpips(name, network.to(device), hash_of_weights(network.state_dict()))


def _load_backbone(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load `features.N.*` into the slices that LPIPS divides the backbone into; layers keep their numbers."""
    for piece in net.modules():
        if isinstance(piece, nn.Sequential):
            for number, layer in piece.named_children():
                start = f"features.{number}."
                layer.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})


def _rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
