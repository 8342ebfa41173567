"""The built-in digit classifier, whose features replace Inception's in the Fréchet distance of digits."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from diffprune.pipelines.builtin import ASSETS

WEIGHTS = ASSETS / "digit-classifier" / "model.safetensors"
NUM_FEATURES = 32


class DigitClassifier(nn.Module):
    """A small convolutional classifier of gray 16x16 digits: (N, 1, 16, 16) in [-1, 1] -> (N, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(8, n) for n in (32, 32, 64))
        self.features = nn.Linear(64 * 4 * 4, NUM_FEATURES)
        self.logits = nn.Linear(NUM_FEATURES, 10)

    def embed(self, images: Tensor) -> Tensor:
        """Return features (N, 32) of images (N, 1, 16, 16)."""
        x = functional.silu(self.norms[0](self.conv1(images)))
        x = functional.max_pool2d(functional.silu(self.norms[1](self.conv2(x))), 2)
        x = functional.max_pool2d(functional.silu(self.norms[2](self.conv3(x))), 2)
        features: Tensor = self.features(x.flatten(1))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 10) of images (N, 1, 16, 16)."""
        logits: Tensor = self.logits(functional.silu(self.embed(images)))
        return logits


def load_classifier(path: Path = WEIGHTS) -> DigitClassifier:
    """Load the classifier with trained weights (safetensors), in eval mode."""
    with torch.device("meta"):
        classifier = DigitClassifier()
    classifier.load_state_dict(load_file(path), assign=True)
    return classifier.eval()


def save_classifier(classifier: DigitClassifier, folder: Path) -> None:
    """Write the weights to `model.safetensors` in a folder."""
    save_file(classifier.state_dict(), folder / WEIGHTS.name)


@torch.no_grad()
def embed_all(classifier: DigitClassifier, batches: list[Tensor], device: torch.device) -> Tensor:
    """Return the features of all batches, float64 (N, 32) on the CPU."""
    classifier.to(device)
    return torch.cat([classifier.embed(batch.to(device)).double().cpu() for batch in batches])
