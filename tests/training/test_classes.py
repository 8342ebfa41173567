"""Training of class-conditional models: the classes of the images reach the denoiser, in pixels and in latents."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel, VQModel
from torch import Tensor, nn

import diffprune
from diffprune.calibration.calibration_set import images_for
from diffprune.errors import DataError, ModelError
from diffprune.options import FinetuneOptions
from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding
from diffprune.pipelines.diffusion import process_of
from diffprune.training.trainer import train_denoiser
from tests.conftest import tiny_pipeline

QUICK: dict[str, Any] = {
    "data": "digits", "steps": 2, "batch_size": 8, "log_every": 1, "learning_rate": 1e-3, "flip": False,
}  # fmt: skip


def latent_pipeline() -> ClassConditionalLDMPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ClassConditionalLDMPipeline(
            VQModel(
                in_channels=1, out_channels=1, latent_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
                down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                num_vq_embeddings=16, scaling_factor=0.5,
            ),
            UNet2DConditionModel(
                sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=12, attention_head_dim=2,
                norm_num_groups=4,
            ),
            ClassEmbedding(10, 12),
            DDIMScheduler(num_train_timesteps=20),
        )  # fmt: skip


class Watched(nn.Module):
    """A denoiser that notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.told: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.told.append(class_labels)
        return (sample * self.scale,)


def test_every_image_comes_with_its_class() -> None:
    process = process_of(tiny_pipeline(num_class_embeds=10))
    images = images_for(process, "digits")
    seen: list[Tensor] = []
    original = process.encode

    class Spy:
        def __getattr__(self, name: str) -> Any:
            return getattr(process, name)

        def encode(self, clean: Tensor) -> Tensor:
            seen.append(clean)
            return original(clean)

    options = FinetuneOptions(**QUICK)
    trained, _ = train_denoiser(Watched(), Spy(), images, options)
    told = torch.cat(trained.told)
    assert images.labels is not None
    by_image = {images[i].numpy().tobytes(): images.labels[i] for i in range(len(images))}
    assert told.tolist() == [by_image[image.numpy().tobytes()] for image in torch.cat(seen)]


@pytest.mark.parametrize("make", [lambda: tiny_pipeline(num_class_embeds=10), latent_pipeline])
def test_a_pruned_class_conditional_model_is_scored_on_labelled_images_and_finetuned(make: Any) -> None:
    pipeline = make()
    plan = diffprune.plan(pipeline, data="digits", ratio=0.4, num_calibration_images=4, timestep_stride=7)
    small = diffprune.prune(pipeline, plan)
    recovered = diffprune.finetune(small, pipeline, **QUICK)
    before, after = small.unet.state_dict(), recovered.unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_scores_depend_on_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline(num_class_embeds=10)
    options: dict[str, Any] = {"data": "digits", "num_calibration_images": 4, "timestep_stride": 7, "threshold": 0}
    right = diffprune.plan(pipeline, **options)
    monkeypatch.setattr("diffprune.calibration.calibration_set.labels_of", lambda source, num: [0] * 1797)
    wrong = diffprune.plan(pipeline, **options)
    assert right.details["losses"] != wrong.details["losses"]


def test_kept_back_classes_become_the_null_class() -> None:
    pipeline = latent_pipeline()
    told: list[Tensor] = []
    embedding = pipeline.class_embedding
    embedding.register_forward_pre_hook(lambda module, args: told.append(args[0]))
    diffprune.finetune(pipeline, None, **{**QUICK, "batch_size": 64, "steps": 1, "class_dropout": 0.5})
    share = float((torch.cat(told) == embedding.null_class).float().mean())
    assert 0.3 < share < 0.7


def test_previews_show_the_classes_in_turn(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    latent_pipeline().save_pretrained(folder)
    from diffprune.cli.main import main

    words = ["--data", "digits", "--steps", "2", "--batch-size", "4", "--preview-every", "2", "--preview-steps", "2"]
    assert main(["finetune", str(folder), *words, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "previews" / "step-0000002.png").stat().st_size > 100
    assert isinstance(diffprune.load_pipeline(tmp_path / "out"), ClassConditionalLDMPipeline)


def test_class_options_of_models_without_classes_are_refused(image_folder: Path) -> None:
    with pytest.raises(ModelError, match="the model has no null class"):
        diffprune.finetune(tiny_pipeline(), None, **QUICK, class_dropout=0.1)
    with pytest.raises(ModelError, match="the model has no null class"):
        diffprune.finetune(tiny_pipeline(num_class_embeds=10), None, **QUICK, class_dropout=0.1)
    with pytest.raises(DataError, match="is in none of its subfolders"):
        diffprune.finetune(tiny_pipeline(num_class_embeds=10), None, **{**QUICK, "data": str(image_folder)})


def test_a_transformer_is_trained_from_scratch(tmp_path: Path) -> None:
    """Its table of positions is a buffer, which is no weight to be drawn."""
    config = {
        "_class_name": "DiTTransformer2DModel", "sample_size": 16, "in_channels": 1, "out_channels": 1,
        "patch_size": 4, "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8,
        "num_embeds_ada_norm": 10, "norm_num_groups": 4,
    }  # fmt: skip
    (tmp_path / "dit.json").write_text(json.dumps(config))
    trained = diffprune.train("digits", architecture=str(tmp_path / "dit.json"), steps=2, batch_size=8, flip=False)
    table = trained.unet.pos_embed.pos_embed
    with torch.random.fork_rng():
        assert torch.equal(table, DiTTransformer2DModel.from_config(config).pos_embed.pos_embed)
    assert all(bool(value.isfinite().all()) for value in trained.unet.parameters())
