"""Command `train-classifier`: train the digit classifier whose features `frechet_distance` compares."""

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from diffprune.compute.device import pick_device
from diffprune.data.digits import SIZE, digits, split
from diffprune.data.images import open_images
from diffprune.evaluation.digit_classifier import DigitClassifier, save_classifier
from diffprune.options import ClassifierOptions
from diffprune.runs.progress import progress
from diffprune.runs.run_record import Existing, run_record


def classifier_stage(options: ClassifierOptions, out: Path, *, existing: Existing = "refuse") -> dict[str, Any]:
    """Train the digit classifier on 1,437 digits; return its accuracy on the other 360 as `test_accuracy`."""
    with run_record(out, "train-classifier", options.resolved(), {}, existing=existing, neutral=options.neutral) as run:
        if not run.finished_before:
            classifier, accuracy = train_classifier(options)
            save_classifier(classifier, run.folder)
            run.result = {"test_accuracy": accuracy}
        return run.result


def train_classifier(options: ClassifierOptions) -> tuple[DigitClassifier, float]:
    """Return the trained classifier and its test accuracy; training shifts the images by up to one pixel."""
    device = pick_device(options.device)
    pool = open_images("digits", (SIZE, SIZE), 1)
    images = torch.stack([pool[i] for i in range(len(pool))]).to(device)
    labels = torch.tensor(digits()[1], device=device)
    train, test = (torch.tensor(part, device=device) for part in split())
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        classifier = DigitClassifier().to(device).train()
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=options.learning_rate, weight_decay=0.01)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        with progress("classifier", options.steps, "steps") as advance:
            for _ in range(options.steps):
                chosen = train[torch.randint(len(train), (options.batch_size,)).to(device)]
                shift = torch.randint(-1, 2, (2,)).tolist()
                batch = images[chosen].roll(shift, (2, 3))
                loss = functional.cross_entropy(classifier(batch), labels[chosen], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                advance(1, "")
    classifier.eval()
    with torch.no_grad():
        correct = classifier(images[test]).argmax(1) == labels[test]
    return classifier.cpu(), float(correct.double().mean())
