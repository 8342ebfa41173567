"""Latent-diffusion checkpoints compute the same as networks written independently, and become whole pipelines."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import LDMPipeline
from torch import Tensor, nn

import diffprune
from diffprune.artifact.pruned_classes import empty_model
from diffprune.conversion.ldm import from_ldm
from diffprune.conversion.ldm_configs import PUBLISHED
from diffprune.data.images import load_image
from diffprune.errors import ModelError, OptionError
from diffprune.options import SampleOptions
from diffprune.pipelines.class_conditional import ClassConditionalLDMPipeline, ClassEmbedding
from diffprune.pipelines.diffusion import process_of
from diffprune.sampling.image_folder import sample_to_folder
from tests.helpers.research_ldm import LatentDiffusionNetwork

NUM_CLASSES = 6
CLASSES = {"uncond": None, "class": NUM_CLASSES + 1}


@cache
def network(kind: str, seed: int = 0) -> nn.Module:
    """The research networks with weights that make every layer matter."""
    with torch.device("meta"):
        empty = LatentDiffusionNetwork(classes=CLASSES[kind])
    whole = empty.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in whole.modules():
            for name, parameter in module.named_parameters(recurse=False):
                noise = torch.randn(parameter.shape, generator=generator)
                if isinstance(module, nn.GroupNorm | nn.LayerNorm) and name == "weight":
                    parameter.copy_(1 + 0.3 * noise)
                elif isinstance(module, nn.Embedding):
                    parameter.copy_(noise)
                else:
                    parameter.copy_(noise * (0.2 if parameter.dim() == 1 else parameter[0].numel() ** -0.5))
    return whole


def config(folder: Path, kind: str, **changes: Any) -> str:
    """The research config of the tiny networks, as published with a checkpoint."""
    unet: dict[str, Any] = {
        "image_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "model_channels": 32,
        "attention_resolutions": [2],
        "num_res_blocks": 2,
        "channel_mult": [1, 2],
    }
    condition: Any = "__is_unconditional__"
    if kind == "class":
        unet |= {"num_heads": 2, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 24}
        condition = {
            "target": "ldm.modules.encoders.modules.ClassEmbedder",
            "params": {"n_classes": NUM_CLASSES + 1, "embed_dim": 24, "key": "class_label"},
        }
    else:
        unet |= {"num_head_channels": 16}
    layers = {"double_z": False, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32}
    layers |= {"ch_mult": [1, 2], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    params = {
        "linear_start": 0.0015,
        "linear_end": 0.0195,
        "timesteps": 1000,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": {**unet, **changes}},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.VQModelInterface",
            "params": {
                "embed_dim": 3,
                "n_embed": 12,
                "ddconfig": layers,
                "lossconfig": {"target": "torch.nn.Identity"},
            },
        },
        "cond_stage_config": condition,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"params": params}}))
    return str(folder / "config.yaml")


def state_dict(raw: nn.Module, ema: nn.Module | None) -> dict[str, Tensor]:
    """What the research code saves: weights, buffers of the schedule, and the EMA with names that lost their dots."""
    tensors = dict(raw.state_dict()) | {"betas": torch.zeros(1000), "alphas_cumprod": torch.zeros(1000)}
    if ema is not None:
        tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
        for name, tensor in ema.model.state_dict().items():
            tensors["model_ema." + name.replace(".", "")] = tensor
    return tensors


@pytest.mark.parametrize("kind", CLASSES)
def test_the_denoiser_equals_the_research_network(kind: str, tmp_path: Path) -> None:
    raw, ema = network(kind, 0), network(kind, 1)
    pipeline, which, notes = from_ldm(state_dict(raw, ema), config(tmp_path, kind), None)
    assert (which, notes) == ("ema", ())
    generator = torch.Generator().manual_seed(2)
    latents, timesteps = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([5, 800])
    labels = torch.tensor([1, NUM_CLASSES])
    with torch.no_grad():
        if kind == "class":
            context = raw.cond_stage_model.embedding(labels)[:, None]  # the condition has no EMA
            tokens = pipeline.class_embedding(labels)
            assert torch.equal(tokens, context)
            expected = ema.model.diffusion_model(latents, timesteps, context)
            ours = pipeline.unet(latents, timesteps, encoder_hidden_states=tokens).sample
        else:
            expected = ema.model.diffusion_model(latents, timesteps)
            ours = pipeline.unet(latents, timesteps).sample
    assert expected.std() > 0.1
    assert torch.allclose(ours, expected, atol=1e-4)


def test_the_first_stage_equals_the_research_network(tmp_path: Path) -> None:
    whole = network("uncond")
    pipeline, _, _ = from_ldm(state_dict(whole, None), config(tmp_path, "uncond"), "raw")
    generator = torch.Generator().manual_seed(3)
    images, latents = torch.randn(2, 3, 16, 16, generator=generator), torch.randn(2, 3, 8, 8, generator=generator)
    with torch.no_grad():
        assert torch.allclose(pipeline.vqvae.encode(images).latents, whole.first_stage_model.encode(images), atol=1e-4)
        assert torch.allclose(pipeline.vqvae.decode(latents).sample, whole.first_stage_model.decode(latents), atol=1e-4)


def test_the_scale_factor_of_the_file_holds_and_is_1_otherwise(tmp_path: Path) -> None:
    tensors = state_dict(network("uncond"), None)
    arch = config(tmp_path, "uncond")
    assert from_ldm(tensors, arch, None)[0].vqvae.config.scaling_factor == 1
    tensors["scale_factor"] = torch.tensor(0.25)
    assert from_ldm(tensors, arch, None)[0].vqvae.config.scaling_factor == 0.25


def test_without_ema_the_raw_weights_are_taken_and_said_so(tmp_path: Path) -> None:
    tensors, arch = state_dict(network("uncond"), None), config(tmp_path, "uncond")
    _, which, notes = from_ldm(tensors, arch, None)
    assert which == "raw"
    assert "no EMA weights" in notes[0]
    with pytest.raises(ModelError, match="no EMA weights"):
        from_ldm(tensors, arch, "ema")


def test_the_schedule_is_linear_in_the_square_root_of_beta(tmp_path: Path) -> None:
    pipeline, _, _ = from_ldm(state_dict(network("uncond"), None), config(tmp_path, "uncond"), None)
    betas = pipeline.scheduler.betas
    assert torch.allclose(betas[[0, -1]], torch.tensor([0.0015, 0.0195]))
    assert torch.allclose(betas.sqrt().diff(), betas.sqrt().diff()[0], atol=1e-7)


def test_an_unconditional_pipeline_saves_loads_and_draws(tmp_path: Path) -> None:
    pipeline, _, _ = from_ldm(state_dict(network("uncond"), None), config(tmp_path, "uncond"), None)
    pipeline.save_pretrained(tmp_path / "out")
    again = diffprune.load_pipeline(tmp_path / "out")
    assert isinstance(again, LDMPipeline)
    drawn = [draw(p, num_inference_steps=2) for p in (pipeline, again)]
    assert drawn[0].shape == (1, 16, 16, 3)
    assert drawn[1] == pytest.approx(drawn[0], abs=1e-5)


def draw(pipeline: Any, *words: Any, **options: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(*words, generator=torch.Generator().manual_seed(0), output_type="np", **options).images


PARAMETERS = {"celebahq-256": (274.06e6, 55.32e6), "cin256-v2": (400.92e6, 55.32e6)}
"""Parameters of denoiser and first stage, as the papers' and model cards' figures have them."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_architectures_have_the_published_sizes(name: str) -> None:
    from diffusers import UNet2DConditionModel, UNet2DModel, VQModel

    model = PUBLISHED[name]
    kind = UNet2DModel if model.class_embedder is None else UNet2DConditionModel
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (empty_model(kind, model.unet()), empty_model(VQModel, model.autoencoder(1.0)))
    ]
    assert sizes == pytest.approx(PARAMETERS[name], rel=1e-3)


# the class-conditional pipeline


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> ClassConditionalLDMPipeline:
    folder = tmp_path_factory.mktemp("config")
    pipeline, _, _ = from_ldm(state_dict(network("class"), None), config(folder, "class"), None)
    assert isinstance(pipeline, ClassConditionalLDMPipeline)
    return pipeline


def test_a_class_conditional_pipeline_saves_and_loads(conditional: ClassConditionalLDMPipeline, tmp_path: Path) -> None:
    conditional.save_pretrained(tmp_path / "out")
    expected = draw(conditional, [0, 3], num_inference_steps=2)
    by_its_class = ClassConditionalLDMPipeline.from_pretrained(tmp_path / "out", dtype=torch.float16)
    assert by_its_class.unet.dtype == torch.float16
    for again in (by_its_class.to(torch.float32), diffprune.load_pipeline(tmp_path / "out")):
        assert isinstance(again, ClassConditionalLDMPipeline)
        assert isinstance(again.class_embedding, ClassEmbedding)
        tolerance = 0.1 if again is by_its_class else 1e-5
        assert draw(again, [0, 3], num_inference_steps=2) == pytest.approx(expected, abs=tolerance)


def test_guidance_extrapolates_from_no_class_to_the_class(conditional: ClassConditionalLDMPipeline) -> None:
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(4))

    def drawn(label: int, scale: float) -> Tensor:
        conditional.set_progress_bar_config(disable=True)
        found: Tensor = conditional(
            label, guidance_scale=scale, latents=noise, num_inference_steps=1, output_type="latent"
        ).images
        return found

    of_class, of_null = drawn(2, 1.0), drawn(NUM_CLASSES, 1.0)
    assert not torch.allclose(of_class, of_null, atol=1e-3)
    assert torch.allclose(drawn(2, 0.0), of_null, atol=1e-4)
    assert torch.allclose(drawn(2, 3.0), of_null + 3 * (of_class - of_null), atol=1e-3)  # one DDIM step is linear
    assert torch.allclose(drawn(NUM_CLASSES, 3.0), of_null, atol=1e-4)


def test_images_do_not_depend_on_their_batch(conditional: ClassConditionalLDMPipeline) -> None:
    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    conditional.set_progress_bar_config(disable=True)
    both = conditional([1, 4], generator=generators(7, 8), num_inference_steps=2, output_type="latent").images
    one = conditional([4], generator=generators(8), num_inference_steps=2, output_type="latent").images
    assert torch.allclose(both[1:], one, atol=1e-4)


def test_the_sampler_draws_classes_under_guidance(conditional: ClassConditionalLDMPipeline, tmp_path: Path) -> None:
    options = SampleOptions(num=2, steps=2, classes="0,3", guidance_scale=2.0, device="cpu")
    sample_to_folder(conditional.unet, process_of(conditional), tmp_path, options)
    assert [load_image(path).size for path in sorted(tmp_path.glob("*.png"))] == [(16, 16)] * 2


@pytest.mark.parametrize("labels", [[], [NUM_CLASSES + 1], [-1], [0.5], ["cat"]])
def test_labels_that_are_no_classes_are_refused(labels: list[Any], conditional: ClassConditionalLDMPipeline) -> None:
    with pytest.raises(OptionError, match=f"expected integers from 0 to {NUM_CLASSES}"):
        conditional(labels)


def test_a_pruned_denoiser_keeps_its_pipeline(conditional: ClassConditionalLDMPipeline, tmp_path: Path) -> None:
    """The denoiser under our class, as a pruned one is: the folder names it so and loads."""
    import copy

    from diffprune.artifact.pruned_classes import pruned_class

    pipeline = copy.copy(conditional)
    unet = copy.deepcopy(conditional.unet)
    unet.__class__ = pruned_class(type(unet))
    unet.pruning_provenance = []
    pipeline.register_modules(unet=unet)
    pipeline.save_pretrained(tmp_path / "out")
    again = diffprune.load_pipeline(tmp_path / "out")
    assert type(again.unet).__module__ == "diffprune"
    expected = draw(conditional, 1, num_inference_steps=1)
    assert draw(again, 1, num_inference_steps=1) == pytest.approx(expected, abs=1e-5)


# weights and configs that do not fit

DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "missing layer": (
        lambda t: t.pop("model.diffusion_model.middle_block.1.qkv.bias"),
        "denoiser .* missing: mid_block.attentions.0.to_q.bias",
    ),
    "missing half of a layer": (
        lambda t: t.pop("model.diffusion_model.output_blocks.2.2.conv.bias"),
        r"missing output_blocks\.2\.2\.conv\.bias",
    ),
    "unexpected in the denoiser": (
        lambda t: t.update({"model.diffusion_model.label_emb.weight": torch.zeros(3, 2)}),
        r"1 unexpected: model\.diffusion_model\.label_emb\.weight",
    ),
    "unexpected in the first stage": (
        lambda t: t.update({"first_stage_model.discriminator.weight": torch.zeros(3)}),
        r"1 unexpected: first_stage_model\.discriminator\.weight",
    ),
    "no codebook": (
        lambda t: t.pop("first_stage_model.quantize.embedding.weight"),
        r"first stage .* missing: quantize\.embedding\.weight",
    ),
    "part of another model": (lambda t: t.update({"control_model.x": torch.zeros(3)}), r"unexpected: control_model\.x"),
    "a condition": (
        lambda t: t.update({"cond_stage_model.embedding.weight": torch.zeros(7, 24)}),
        r"is unconditional, but the file has cond_stage_model\.embedding\.weight",
    ),
    "no denoiser": (
        lambda t: [t.pop(name) for name in list(t) if name.startswith("model.")],
        r"no model\.diffusion_model",
    ),
    "part of an ema": (
        lambda t: t.update({"model_ema.diffusion_modelout2bias": torch.zeros(3)}),
        "the EMA and the weights differ",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_tensors_that_do_not_fit_are_named(case: str, tmp_path: Path) -> None:
    change, expected = DAMAGE[case]
    tensors = state_dict(network("uncond"), None)
    change(tensors)
    with pytest.raises(ModelError, match=expected):
        from_ldm(tensors, config(tmp_path, "uncond"), None)


def test_a_class_conditional_file_without_its_embedding_is_refused(tmp_path: Path) -> None:
    tensors = state_dict(network("class"), None)
    del tensors["cond_stage_model.embedding.weight"]
    with pytest.raises(ModelError, match=r"class embedding of .* 1 missing: embedding\.weight"):
        from_ldm(tensors, config(tmp_path, "class"), None)


def test_the_wrong_published_architecture_is_refused() -> None:
    with pytest.raises(ModelError, match=r"first stage of cin256-v2: .*with the wrong shape"):
        from_ldm(state_dict(network("class"), None), "cin256-v2", None)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "other resampling": ({"resblock_updown": True}, r"resblock_updown"),
    "unknown fact": ({"use_flux": 1}, "use_flux: no such option"),
    "other heads": ({"num_head_channels": -1, "num_heads": 2}, "an unconditional model has num_head_channels"),
    "odd widths": ({"model_channels": 33}, "is not a valid UNet2DModel"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_not_served_is_refused(case: str, tmp_path: Path) -> None:
    changes, expected = CONFIGS[case]
    with pytest.raises(ModelError, match=expected):
        from_ldm(state_dict(network("uncond"), None), config(tmp_path, "uncond", **changes), None)


@pytest.mark.parametrize("text", ["model: [", "just words", "model: {}", None])
def test_a_file_that_is_no_config_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"not a latent-diffusion config|no architecture"):
        from_ldm(state_dict(network("uncond"), None), str(tmp_path / "c.yaml"), None)
