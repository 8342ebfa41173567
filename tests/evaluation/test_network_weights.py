"""Networks that judge images: their weights, LPIPS and the CLIP score."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchvision import models

import diffprune
from diffprune.errors import DataError, ModelError, OptionError
from diffprune.evaluation import inception
from diffprune.evaluation.clip_score import load_clip
from diffprune.evaluation.lpips import load_lpips
from diffprune.evaluation.network_weights import fetch_weights, hash_of_weights, read_weights
from diffprune.evaluation.paired_metrics import HIGHEST_PSNR, psnr
from tests.conftest import photos

CPU = torch.device("cpu")
Sets = tuple[Path, Path]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


# weights


def test_a_pickle_that_would_execute_something_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"cannot read .* as weights"):
        inception.load_inception(tmp_path / "weights.pth", CPU)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut short"])
def test_files_that_hold_no_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    for name in ("weights.pth", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"cannot read .* as weights"):
            read_weights(tmp_path / name)
    with pytest.raises(ModelError, match="no file"):
        read_weights(tmp_path / "nowhere.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="no state dict"):
        read_weights(tmp_path / "list.pth")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="does not hold the weights of inception-v3-2015-12-05"):
        inception.load_inception(tmp_path / "weights.pth", CPU)
    with pytest.raises(ModelError, match="does not hold torchvision's weights of alexnet"):
        load_lpips("alex", tmp_path / "weights.pth", CPU)


def test_the_hash_is_of_the_values_whatever_the_file(tmp_path: Path) -> None:
    state = {"a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), "b": torch.ones(2)}
    torch.save({**state, "n.num_batches_tracked": torch.tensor(7)}, tmp_path / "weights.pth")
    save_file(state, tmp_path / "weights.safetensors")
    first, second = (hash_of_weights(read_weights(tmp_path / f"weights.{ending}")) for ending in ("pth", "safetensors"))
    assert first == second == hash_of_weights(dict(reversed(state.items())))
    assert hash_of_weights({**state, "b": torch.full((2,), 1.001)}) != first


def test_published_weights_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    served = tmp_path / "served-weights.pth"
    served.write_bytes(b"weights")
    url, digest = served.as_uri(), hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(ModelError, match=r"expected 0000.*give FILE"):
        fetch_weights(url, "0" * 64, remedy="give FILE")
    assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]
    path = fetch_weights(url, digest, remedy="")
    assert path.read_bytes() == b"weights"
    served.unlink()
    assert fetch_weights(url, digest[:8], remedy="") == path
    path.write_bytes(b"other")
    with pytest.raises(ModelError, match="remove it to download it again"):
        fetch_weights(url, digest, remedy="")
    path.unlink()
    with pytest.raises(ModelError, match="cannot download"):
        fetch_weights(url, digest, remedy="")


def test_without_weights_nothing_random_stands_in(
    photo_sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(inception, "URL", (tmp_path / "nowhere-00000000.pth").as_uri())
    with pytest.raises(ModelError, match="--inception-weights FILE"):
        diffprune.evaluate(*photo_sets, metrics=("fid",))


# pairs


def test_psnr_is_ten_times_the_logarithm_of_the_inverse_mse() -> None:
    images = torch.zeros(2, 3, 4, 4)
    found = psnr(images, torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)]))
    assert torch.allclose(found, torch.tensor([20.0, HIGHEST_PSNR]))


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of AlexNet's convolutions under the name of torchvision's file."""
    with torch.device("meta"):
        shapes = models.alexnet(weights=None).features.state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {f"features.{k}": torch.randn(v.shape, generator=generator) * 0.05 for k, v in shapes.items()}
    path = tmp_path_factory.mktemp("alexnet") / "alexnet-owt-7be5be79.pth"
    torch.save(state, path)
    return path


def pixels(folder: Path) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor

    return torch.stack([pil_to_tensor(Image.open(p)) for p in sorted(folder.iterdir())]).float() / 255


def test_lpips_equals_that_of_torchmetrics(
    alexnet_file: Path, photo_sets: Sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        whole = models.alexnet(weights=None)
    whole.features.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(alexnet_file).items()})
    monkeypatch.setattr(models, "alexnet", lambda **_: whole)
    with torch.random.fork_rng():
        theirs = learned_perceptual_image_patch_similarity(*map(pixels, photo_sets), net_type="alex", normalize=True)
    monkeypatch.undo()
    found = diffprune.evaluate(*photo_sets, metrics=("lpips",), lpips_weights=alexnet_file, batch_size=2, device="cpu")
    assert found["lpips"] == pytest.approx(float(theirs), rel=1e-4)
    assert found["lpips"] > 0
    assert found["protocol"]["lpips"]["network"] == "lpips 0.1, alexnet"
    same = diffprune.evaluate(photo_sets[0], photo_sets[0], metrics=("lpips", "psnr"), lpips_weights=alexnet_file)
    assert (same["lpips"], same["psnr"]) == (0, HIGHEST_PSNR)


def test_lpips_takes_grey_images_and_refuses_tiny_ones(alexnet_file: Path) -> None:
    perceptual = load_lpips("alex", alexnet_file, CPU)
    grey = torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    colour = grey.expand(-1, 3, -1, -1)
    assert torch.equal(perceptual.distance(grey, 1 - grey), perceptual.distance(colour, 1 - colour))
    with pytest.raises(DataError, match="needs at least 31x31"):
        perceptual.distance(torch.zeros(1, 3, 16, 40), torch.zeros(1, 3, 16, 40))


def test_the_first_pairs_are_those_of_the_lowest_indices(photo_sets: Sets, tmp_path: Path) -> None:
    two = [photos(tmp_path / name, seed, num=2) for name, seed in (("images", 1), ("reference", 2))]
    first = diffprune.evaluate(*photo_sets, metrics=("mse",), num=2)
    assert first == diffprune.evaluate(*two, metrics=("mse",))
    with pytest.raises(DataError, match="holds 3 images, but num is 4; set num to at most 3"):
        diffprune.evaluate(*photo_sets, metrics=("mse",), num=4)


# prompts


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model with random weights and a tokenizer of single letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(i) for i in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = len(tokens) - 2, len(tokens) - 1
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**layers, "vocab_size": len(tokens), "max_position_embeddings": 16}
    text |= {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(text_config=text, vision_config={**layers, "image_size": 32, "patch_size": 8}, projection_dim=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def write_prompts(folder: Path, *lines: str) -> Path:
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    return folder / "prompts.txt"


def test_the_clip_score_is_a_hundred_times_the_mean_cosine(clip_folder: Path, photo_sets: Sets, tmp_path: Path) -> None:
    prompts = ["a cat", "two very long dogs " * 9, "red"]
    clip = load_clip(str(clip_folder), CPU)
    images = [Image.open(path) for path in sorted(photo_sets[0].iterdir())]
    inputs = clip.processor(text=prompts, images=images, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        logits = clip.model(**inputs).logits_per_image.diagonal() / clip.model.logit_scale.exp()
    found = diffprune.evaluate(
        photo_sets[0],
        None,
        metrics=("clip_score",),
        prompts=write_prompts(tmp_path, *prompts),
        clip_model=str(clip_folder),
        batch_size=2,
        device="cpu",
    )
    assert found["clip_score"] == pytest.approx(100 * float(logits.clamp(min=0).mean()), rel=1e-4)
    assert found["protocol"]["clip_score"]["num_images"] == 3


def test_prompts_belong_to_image_indices_in_turn(clip_folder: Path, photo_sets: Sets, tmp_path: Path) -> None:
    options = {"metrics": ("clip_score",), "clip_model": str(clip_folder), "device": "cpu"}
    in_turn, written_out = (
        diffprune.evaluate(photo_sets[0], None, prompts=write_prompts(tmp_path, *lines), **options)["clip_score"]
        for lines in (("a", "b"), ("a", "b", "a"))
    )
    assert in_turn == written_out
    with pytest.raises(OptionError, match="clip_score needs a text file"):
        diffprune.evaluate(photo_sets[0], None, **options)
    with pytest.raises(OptionError, match="cannot read the prompts"):
        diffprune.evaluate(photo_sets[0], None, prompts=tmp_path / "nowhere.txt", **options)
    with pytest.raises(ModelError, match="cannot load the CLIP model"):
        load_clip(str(tmp_path), CPU)


def test_a_missing_transformers_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install 'diffprune\[clip\]'"):
        load_clip("openai/clip-vit-large-patch14", CPU)
