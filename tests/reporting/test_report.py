"""The report page: self-contained and well-formed, with the images, numbers and plots of the runs."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffprune
from diffprune.cli.main import main
from diffprune.errors import FolderError
from diffprune.options.budget_options import requested_of
from diffprune.reporting.formats import explanations_of
from diffprune.reporting.pareto import ModelPoint, frontier, pareto_plots
from diffprune.reporting.sample_images import PairScores, embed_image, pair_scores, shown_indices
from diffprune.runs.run_record import identity
from diffprune.stages.report_stage import report_stage

VOID = {"meta", "link", "img", "input", "br", "hr"}

NUM_IMAGES = 6


class Page(HTMLParser):
    """Elements of a page in their order, and the tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def write_images(folder: Path, images: list[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")


def write_record(folder: Path, stage: str, result: Mapping[str, Any], **options: Any) -> None:
    record = {
        "stage": stage, "status": "finished", "options": options, "inputs": {}, "started": "2026-01-01T00:00:00Z",
        "wall_time_s": 1.5, "peak_memory_mb": 100, "result": result, "platform": "Linux", "versions": {"torch": "2"},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))


def noisy(images: list[np.ndarray], strengths: list[float]) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    noise = [random.normal(0, strength, image.shape) for strength, image in zip(strengths, images, strict=True)]
    return [(image + some).clip(0, 255).astype(np.uint8) for image, some in zip(images, noise, strict=True)]


STRENGTHS = {"pruned": [30.0, 10, 50, 40, 20, 60], "recovered": [8.0, 2, 6, 20, 4, 10]}


def sampled(out: Path, names: tuple[str, ...] = ("original", "pruned", "recovered"), side: int = 16) -> Path:
    """Folders as `sample` writes them; the noise of image i is as strong as `STRENGTHS` says."""
    random = np.random.default_rng(0)
    coarse = [random.integers(0, 256, (4, 4), dtype=np.uint8) for _ in range(NUM_IMAGES)]
    images = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)) for one in coarse]
    for name in names:
        write_images(out / name, images if name == "original" else noisy(images, STRENGTHS[name]))
        size = {"params": 2000, "macs": 4_000_000} if name == "original" else {"params": 1000, "macs": 2_000_000}
        ssim = diffprune.evaluate(out / name, out / "original", metrics=("ssim",))["ssim"]
        write_record(out / name, "sample", {**size, "latency_ms": 1.0, "ssim": ssim}, seed=0, num=NUM_IMAGES)
    return out


def test_the_page_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    report_stage([sampled(tmp_path / "runs")], tmp_path / "report.html", title="a <b> & c")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert (page.unbalanced, page.open) == ([], [])
    assert not re.search(r"https?:|//\w+\.\w|@import|url\((?!#)", text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "<h1>a &lt;b&gt; &amp; c</h1>" in text
    identifiers = [attributes["id"] for tag, attributes in page.elements if tag == "input" and "id" in attributes]
    assert len(identifiers) == len(set(identifiers)) == 3


def test_the_page_explains_the_metrics_that_it_shows(tmp_path: Path) -> None:
    assert " ".join(explanations_of(["model", "macs", "ssim"])).count("compares") == 1
    folder = tmp_path / "images" / "original"
    write_images(folder, [np.zeros((8, 8, 3), np.uint8)] * 2)
    write_record(folder, "sample", {"params": 10, "macs": 10, "num_images": 2})
    report_stage([folder], tmp_path / "report.html", title="metrics")
    page = (tmp_path / "report.html").read_text()
    assert "MACs count the layers" in page
    assert not {word for word in ("SSIM compares", "MSE compares", "Fréchet distance") if word in page}


def test_every_image_has_a_text_and_tiny_ones_are_pixelated_and_enlarged(tmp_path: Path) -> None:
    report_stage([sampled(tmp_path / "runs")], tmp_path / "report.html", title="digits")
    images = [image for image in Page((tmp_path / "report.html").read_text()).all("img") if "src" in image]
    assert len(images) == 3 * NUM_IMAGES + 2 * 2 * 2
    assert all(re.fullmatch(r"image \d+, \w+(, SSIM \d\.\d{3})?", image["alt"] or "") for image in images)
    assert all(image["class"] == "pixelated" for image in images)
    assert all(int(image["width"] or 0) >= 96 and int(image["width"] or 0) % 16 == 0 for image in images)


@pytest.mark.parametrize(
    ("size", "shown", "pixelated"),
    [
        ((16, 16), (96, 96), True),
        ((28, 20), (112, 80), True),
        ((96, 64), (96, 64), False),
        ((600, 300), (256, 128), False),
    ],
)
def test_an_embedded_image_has_a_readable_size(
    size: tuple[int, int], shown: tuple[int, int], pixelated: bool, tmp_path: Path
) -> None:
    Image.new("RGB", size).save(tmp_path / "0.png")
    image = embed_image(tmp_path / "0.png")
    assert (image.width, image.height, image.pixelated) == (*shown, pixelated)


def test_the_ssim_of_each_pair_is_that_of_evaluate(tmp_path: Path) -> None:
    runs = sampled(tmp_path / "runs")
    scores = pair_scores(runs / "pruned", runs / "original")
    assert scores is not None
    whole = diffprune.evaluate(runs / "pruned", runs / "original", metrics=("ssim",))["ssim"]
    assert np.mean(list(scores.by_index.values())) == pytest.approx(whole, abs=1e-6)
    for index in range(NUM_IMAGES):
        for side in ("pruned", "original"):
            write_images(tmp_path / f"{side}-{index}", [np.asarray(Image.open(runs / side / f"{index:06d}.png"))])
        alone = diffprune.evaluate(tmp_path / f"pruned-{index}", tmp_path / f"original-{index}", metrics=("ssim",))
        assert scores.by_index[index] == pytest.approx(alone["ssim"], abs=1e-6)


def test_the_worst_and_the_median_pair_are_shown_with_their_index(tmp_path: Path) -> None:
    runs = sampled(tmp_path / "runs")
    for name, worst in (("pruned", 5), ("recovered", 3)):  # by STRENGTHS
        scores = pair_scores(runs / name, runs / "original")
        assert scores is not None
        assert scores.worst == worst == min(scores.by_index, key=lambda index: scores.by_index[index])
        ranked = sorted(scores.by_index.values())
        assert scores.by_index[scores.median] == ranked[(NUM_IMAGES - 1) // 2]
    report_stage([runs], tmp_path / "report.html", title="digits")
    text = (tmp_path / "report.html").read_text()
    for name in ("pruned", "recovered"):
        scores = pair_scores(runs / name, runs / "original")
        assert scores is not None
        for rank, index in (("worst", scores.worst), ("median", scores.median)):
            label = f"<b>{name}, {rank}</b> of {NUM_IMAGES}<br>"
            ssim = f"image {index}, SSIM {scores.by_index[index]:.3f}"
            assert re.search(re.escape(label) + "[^/]*" + re.escape(ssim), text), label


def test_equal_scores_rank_by_index() -> None:
    scores = PairScores({4: 0.5, 1: 0.5, 2: 0.9})
    assert (scores.worst, scores.median) == (1, 4)


def test_many_large_images_are_shown_in_part_with_the_worst_and_median(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [np.zeros((256, 256), dtype=np.uint8)] * 12)
    files = {index: tmp_path / "images" / f"{index:06d}.png" for index in range(12)}
    scores = PairScores({index: 1 - index / 20 for index in range(12)})
    shown = shown_indices([files, files, files], [None, scores, None], 3)
    assert shown == [*range(9), 11]
    assert {scores.worst, scores.median} <= set(shown)
    assert shown_indices([files] * 30, [None] * 30, 30) == [0, 1, 2, 3]


def test_images_of_other_noise_are_shown_without_ssim(tmp_path: Path) -> None:
    runs = sampled(tmp_path / "runs")
    record = json.loads((runs / "pruned" / "run.json").read_text())
    record["options"]["seed"] = 1
    (runs / "pruned" / "run.json").write_text(json.dumps(record))
    (runs / "recovered" / "000000.png").unlink()
    report_stage([runs], tmp_path / "report.html", title="digits")
    text = (tmp_path / "report.html").read_text()
    assert ", worst</b>" not in text
    assert ", SSIM" not in text
    assert 'alt="image 1, pruned"' in text


def rows(*models: tuple[str, int, float]) -> list[dict[str, Any]]:
    return [{"model": name, "params": 1, "macs": macs, "ssim": ssim} for name, macs, ssim in models]


def test_a_pareto_plot_needs_several_models_and_a_quality() -> None:
    three = rows(("original", 4, 1.0), ("pruned", 2, 0.8), ("recovered", 2, 0.9))
    (plot,) = pareto_plots(three)
    assert (plot.cost, plot.quality) == ("macs", "ssim")
    assert [point.model for point in frontier(plot.points)] == ["original", "recovered"]
    assert [p.cost for p in pareto_plots([{**row, "latency_ms": 1.0} for row in three])] == ["macs", "latency_ms"]
    assert pareto_plots([{**row, "fid": 3.0} for row in three])[0].quality == "fid"
    assert pareto_plots(three[:2]) == []
    assert pareto_plots([{k: v for k, v in row.items() if k != "ssim"} for row in three]) == []
    assert pareto_plots([]) == []


def test_where_lower_is_better_the_frontier_is_the_lower_one() -> None:
    points = [
        ModelPoint(name, cost, fid, False) for name, cost, fid in (("a", 1.0, 9.0), ("b", 2.0, 5.0), ("c", 2.0, 7.0))
    ]
    assert [point.model for point in frontier(points)] == ["a", "b"]


@pytest.mark.parametrize("num_models", [1, 2, 3])
def test_the_page_has_a_pareto_plot_only_with_several_models(num_models: int, tmp_path: Path) -> None:
    runs = sampled(tmp_path / "runs", ("original", "pruned", "recovered")[:num_models])
    for folder in runs.iterdir():
        record = json.loads((folder / "run.json").read_text())
        ssim = record["result"].pop("ssim")
        (folder / "run.json").write_text(json.dumps(record))
        write_record(tmp_path / "metrics" / folder.name, "evaluate", {"ssim": ssim})
        evaluation = tmp_path / "metrics" / folder.name / "run.json"
        content = json.loads(evaluation.read_text())
        content["inputs"] = {"images": {"source": str(folder), "identity": identity(str(folder))}}
        evaluation.write_text(json.dumps(content))
    report_stage([runs, tmp_path / "metrics"], tmp_path / "report.html", title="digits")
    assert ("Pareto" in (tmp_path / "report.html").read_text()) is (num_models == 3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 0.4}, "remove 40% of the units"),
        ({"ratio": {"*": 0.3, "conv_in": 0.1}}, "remove 30% of the units, 10% in conv_in"),
        ({"ratio": 0.3, "keep_macs": 0.5}, "keep 50% of the MACs"),
        ({"keep_params": 0.5, "max_latency_ms": 2}, "keep 50% of the parameters and keep latency below 2 ms"),
        ({}, ""),
    ],
)
def test_what_was_requested_is_stated_in_words(options: dict[str, Any], text: str) -> None:
    assert requested_of(options) == text


def test_the_page_states_what_was_requested_and_what_came_out(pipeline_folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    assert main(["plan", str(pipeline_folder), "--criterion", "magnitude", "--ratio", "0.5", "--out", str(plan)]) == 0
    report_stage([plan], tmp_path / "report.html", title="one plan")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert (page.unbalanced, page.open) == ([], [])
    made = json.loads((plan / "plan.json").read_text())
    assert "remove 50% of the units" in text
    for cost in ("params", "macs"):
        assert f"{100 * made['after'][cost] / made['before'][cost]:.1f}% kept" in text
    assert "Parameters per block" in text
    assert "<img" not in text


def test_a_report_about_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no finished stage"):
        report_stage([tmp_path], tmp_path / "report.html", title="empty")
