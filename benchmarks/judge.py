"""Quality measures of a denoiser: errors on held-out images and samples, compared with the original's."""

import itertools
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffprune.calibration.calibration_set import NoisyBatch, noisy_batch
from diffprune.compute.device import pick_device
from diffprune.compute.placement import placed
from diffprune.data.images import ImageSet, rows_at
from diffprune.data.labels import labels_of
from diffprune.evaluation.digit_classifier import load_classifier
from diffprune.evaluation.frechet import frechet_distance
from diffprune.evaluation.paired_metrics import ssim
from diffprune.options import SampleOptions
from diffprune.pipelines.conditioning import on_device
from diffprune.pipelines.denoiser_access import denoiser_of
from diffprune.pipelines.diffusion import Conditioning, process_of
from diffprune.pipelines.predict import predict
from diffprune.runs.progress import progress
from diffprune.sampling.sampler import draw_images

HELD_OUT, NUM_JUDGED, DRAWING_STEPS, NUM_PAIRED = 0.1, 640, 20, 64


def split(images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Split off a tenth of the images, at least 256, for evaluation; returns them and the others."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7)).tolist()
    num = max(256, int(len(images) * HELD_OUT))
    held_out, others = (
        ImageSet(
            rows_at(images.rows, part), images.preprocessing, images.channels, images.source,
            labels=None if images.labels is None else [images.labels[i] for i in part],
        )
        for part in (order[:num], order[num:])
    )  # fmt: skip
    return held_out, others


class Classifier(nn.Module):
    """A small classifier whose features stand in where the package ships none; trained in minutes."""

    def __init__(self, channels: int, num_classes: int, side: int) -> None:
        super().__init__()
        widths = (channels, 32, 64, 128)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in widths[1:])
        self.features = nn.Linear(128 * (side // 8) ** 2, 64)
        self.logits = nn.Linear(64, num_classes)

    def embed(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = functional.max_pool2d(functional.silu(norm(conv(x))), 2)
        return self.features(x.flatten(1))


def classifier_for(data: str, images: ImageSet, steps: int = 800) -> Any:
    """Return a classifier for features: the shipped one for the digits, else one trained on the classes of DATA."""
    if data == "digits":
        return load_classifier()
    torch.manual_seed(0)
    labels = torch.tensor(labels_of(data, 1000))
    network = Classifier(images.channels, int(labels.max()) + 1, images.shape[-1])
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    with progress("classifier", steps, "steps") as advance:
        for _ in range(steps):
            chosen = torch.randint(len(images), (64,)).tolist()
            x = torch.stack([images[i] for i in chosen])
            loss = functional.cross_entropy(network.logits(functional.silu(network.embed(x))), labels[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advance(1, f"loss {float(loss):.2f}")
    return network.eval()


class Judge:
    """Measures a denoiser against the original, on fixed images, noises, timesteps and samples."""

    def __init__(
        self,
        pipeline: Any,
        images: ImageSet,
        embed: Callable[[Tensor], Tensor],
        num_drawn: int,
        device: str = "cpu",
    ) -> None:
        self.device = pick_device(device)
        self.process, self.original, self.embed = process_of(pipeline), denoiser_of(pipeline).eval(), embed
        generator = torch.Generator().manual_seed(1234)
        chosen = [i % len(images) for i in range(NUM_JUDGED)]
        clean = torch.stack([images[i] for i in chosen])
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.arange(NUM_JUDGED) * self.process.num_timesteps // NUM_JUDGED
        condition: Conditioning = {}
        if self.process.classes is not None and images.labels is not None:
            condition = self.process.classes.embed(torch.tensor([images.labels[i] for i in chosen]))
        parts = [slice(i, i + 64) for i in range(0, NUM_JUDGED, 64)]
        self.batches = [
            noisy_batch(self.process.scheduler, clean[p], noise[p], times[p], {n: v[p] for n, v in condition.items()})
            for p in parts
        ]
        self.num_drawn = num_drawn
        self.real = self._embedded(torch.stack([images[i] for i in range(min(len(images), 2 * num_drawn))]))
        self.outputs = self._outputs(self.original)
        self.drawn = self._drawn(self.original)
        self.of_original = {"noise_error": self._noise_error(self.outputs), "frechet": self._frechet(self.drawn)}

    def errors(self, denoiser: nn.Module) -> dict[str, float]:
        outputs = self._outputs(denoiser)
        gap = torch.cat([(a - b).square().flatten() for a, b in zip(outputs, self.outputs, strict=True)])
        return {
            "output_error": float(gap.mean()),
            "noise_error": self._noise_error(outputs) - self.of_original["noise_error"],
        }

    def samples(self, denoiser: nn.Module) -> dict[str, float]:
        drawn = self._drawn(denoiser)
        return {
            "frechet": self._frechet(drawn) - self.of_original["frechet"],
            "ssim": float(ssim(drawn[:NUM_PAIRED] / 255, self.drawn[:NUM_PAIRED] / 255).mean()),
        }

    @torch.no_grad()
    def _outputs(self, denoiser: nn.Module) -> list[Tensor]:
        with placed(denoiser, self.device):
            return [self._output(denoiser, batch) for batch in self.batches]

    def _output(self, denoiser: nn.Module, batch: NoisyBatch) -> Tensor:
        noisy, timesteps = batch.noisy.to(self.device), batch.timesteps.to(self.device)
        return predict(denoiser, noisy, timesteps, on_device(batch.condition, self.device)).cpu()

    def _noise_error(self, outputs: list[Tensor]) -> float:
        return float(mean(float((a - b.target).square().mean()) for a, b in zip(outputs, self.batches, strict=True)))

    def _drawn(self, denoiser: nn.Module) -> Tensor:
        options = SampleOptions(num=self.num_drawn, steps=DRAWING_STEPS, seed=99)
        parts = [range(i, min(i + 64, self.num_drawn)) for i in range(0, self.num_drawn, 64)]
        with placed(denoiser, self.device):
            return torch.cat([draw_images(denoiser, self.process, part, options, self.device) for part in parts])

    @torch.no_grad()
    def _embedded(self, images: Tensor) -> Tensor:
        return torch.cat([self.embed(part) for part in images.split(64)])

    def _frechet(self, drawn: Tensor) -> float:
        return frechet_distance(self._embedded(drawn.float() / 127.5 - 1), self.real)
