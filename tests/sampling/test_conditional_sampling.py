"""Conditions: classes in turn, guidance, latents."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, DDPMScheduler, LDMPipeline, VQModel
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

import diffprune
from diffprune.errors import DataError, OptionError
from diffprune.options import SampleOptions, class_list
from diffprune.pipelines.diffusion import Classes, DiffusionProcess, process_of
from diffprune.sampling.sampler import predictor
from tests.conftest import tiny_pipeline, tiny_unet

CPU = torch.device("cpu")


def pixels(paths: list[Path]) -> torch.Tensor:
    return torch.stack([pil_to_tensor(Image.open(path)) for path in paths]).int()


def test_classes_are_drawn_in_turn_and_change_the_image(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(num_class_embeds=3)
    drawn = {
        classes: pixels(diffprune.sample(pipeline, tmp_path / str(classes), num=4, steps=3, classes=classes))
        for classes in (None, "0-2", "2,0", "1")
    }
    assert torch.equal(drawn[None], drawn["0-2"])
    assert torch.equal(drawn["2,0"][1], drawn["0-2"][1]) is False
    assert torch.equal(drawn["1"][1], drawn["0-2"][1])
    assert torch.equal(drawn["2,0"][2], drawn["0-2"][2])


def test_a_number_per_class_replaces_the_number_of_images(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(num_class_embeds=3)
    assert len(diffprune.sample(pipeline, tmp_path, steps=2, classes="0,2", per_class=2)) == 4


def test_guidance_is_a_weighted_difference() -> None:
    class Teller(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parameter = torch.nn.Parameter(torch.zeros(()))

        def forward(
            self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, return_dict: bool
        ) -> list[torch.Tensor]:
            return [labels.float()[:, None, None, None].expand_as(x)]

    classes = Classes(3, 10, lambda labels: {"labels": labels})
    process = DiffusionProcess(DDPMScheduler(), (1, 2, 2), (1, 2, 2), None, classes)
    predict = predictor(Teller(), process, [0, 1, 2], SampleOptions(guidance_scale=2.0), CPU)
    told = predict(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.long))
    assert told[:, 0, 0, 0].tolist() == [10 + 2 * (label - 10) for label in (0, 1, 2)]


def test_a_class_conditional_model_is_scored_on_its_own_images() -> None:
    pipeline = tiny_pipeline(num_class_embeds=3)
    options = {"num_calibration_images": 4, "generation_steps": 2, "timestep_stride": 10}
    plan = diffprune.plan(pipeline, data="generated", ratio=0.5, **options)
    small = diffprune.prune(pipeline, plan)
    assert small.unet.class_embedding.num_embeddings == 3
    with pytest.raises(DataError, match="the model has 0 to 2"):
        diffprune.plan(pipeline, data="digits", **options)


def latent_pipeline() -> LDMPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vqvae = VQModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=1,
            num_vq_embeddings=16,
            norm_num_groups=4,
        ).eval()
    return LDMPipeline(vqvae, tiny_unet(), DDPMScheduler(num_train_timesteps=20))


def test_latents_are_decoded_to_images_of_their_size(tmp_path: Path) -> None:
    pipeline = latent_pipeline()
    process = process_of(pipeline)
    assert (process.shape, process.image_shape) == ((1, 16, 16), (3, 32, 32))
    images = pixels(diffprune.sample(pipeline, tmp_path, num=2, steps=2))
    assert images.shape == (2, 3, 32, 32)


def test_encoding_undoes_the_scaling_that_decoding_applies() -> None:
    process = process_of(latent_pipeline())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = process.encode(images)
    assert latents.shape == (2, 1, 16, 16)
    assert torch.allclose(
        latents, process.autoencoder.encode(images).latents * process.autoencoder.config.scaling_factor
    )
    assert process.decode(latents).shape == images.shape


def test_a_latent_model_is_scored_pruned_finetuned_and_reloaded(tmp_path: Path) -> None:
    pipeline = latent_pipeline()
    plan = diffprune.plan(pipeline, data="digits", num_calibration_images=4, timestep_stride=10, ratio=0.5)
    small = diffprune.prune(pipeline, plan)
    tuned = diffprune.finetune(small, pipeline, data="digits", steps=2, batch_size=4)
    tuned.save_pretrained(tmp_path)
    again = diffprune.load_pipeline(tmp_path)
    assert type(again) is LDMPipeline
    assert type(again.unet) is diffprune.UNet2DModel
    assert sum(p.numel() for p in again.unet.parameters()) == plan.after.params


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "0-3"}, "the model has 0 to 2"),
        ({"classes": "a-b"}, "expected classes such as"),
        ({"guidance_scale": 2.0}, "the model has no null class"),
        ({"per_class": 2}, "needs classes"),
    ],
)
def test_classes_that_cannot_be_are_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        diffprune.sample(tiny_pipeline(num_class_embeds=3), tmp_path, num=1, steps=1, **options)
    assert not list(tmp_path.iterdir())


def test_an_unconditional_model_takes_no_classes(tmp_path: Path) -> None:
    for options in ({"classes": "0-2"}, {"guidance_scale": 3.0}):
        with pytest.raises(OptionError, match="the model is unconditional"):
            diffprune.sample(tiny_pipeline(), tmp_path, num=1, steps=1, **options)


def test_a_list_of_classes_keeps_its_order() -> None:
    assert class_list("3,5,8-10,0") == [3, 5, 8, 9, 10, 0]


def test_diffusers_own_ddim_draws_the_same_from_the_same_noise(tmp_path: Path) -> None:
    """The uniform grid of T / S timesteps is diffusers' leading spacing."""
    from diffusers import DDIMScheduler

    unet = tiny_unet()
    scheduler = DDIMScheduler(num_train_timesteps=20, clip_sample=False, set_alpha_to_one=True, steps_offset=0)
    pipeline = DDIMPipeline(unet, scheduler)
    ours = pixels(diffprune.sample(pipeline, tmp_path, num=2, steps=5))
    theirs = pixels(diffprune.sample(pipeline, tmp_path / "theirs", num=2, steps=5, scheduler="own"))
    assert (ours - theirs).abs().max() <= 1
