"""Denoiser classes that are not known: refused with what was not understood, or registered."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diffprune
from diffprune.architectures.families import FAMILIES
from diffprune.errors import ModelError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-family.md"


@pytest.fixture(autouse=True)
def _families_stay_as_they_are() -> Iterator[None]:
    before = dict(FAMILIES)
    with torch.random.fork_rng():
        yield
    FAMILIES.clear()
    FAMILIES.update(before)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).sigmoid())
        return out


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Odd() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_class_without_units_is_refused_with_its_blocks_and_the_way_out() -> None:
    with pytest.raises(ModelError, match="Unknown") as caught:
        diffprune.find_groups(Unknown())
    assert "layers: 3 blocks, with Linear" in str(caught.value)
    assert "diffprune.register_family" in str(caught.value)


def test_a_registered_class_is_pruned_exactly() -> None:
    diffprune.register_family(
        Unknown,
        example_inputs=lambda model, batch, device: {"x": torch.zeros(batch, 8, device=device)},
        feed_forwards=(diffprune.FeedForwardLayout(("first",), "second"),),
    )
    model = Unknown()
    plan = diffprune.plan(model, criterion="magnitude", ratio=0.5)
    assert [group.kind for group in diffprune.find_groups(model)] == ["neurons"] * 3
    small = diffprune.prune(model, plan)
    x = torch.ones(2, 8)
    assert {layer.first.out_features for layer in small.layers} == {4}
    for name, units in plan.groups.items():
        removed = [unit for unit in range(8) if unit not in units.kept]
        with torch.no_grad():
            model.get_submodule(name.replace("first", "second")).weight[:, removed] = 0
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_inputs_that_nothing_tells_are_asked_for() -> None:
    diffprune.register_family(Unknown, feed_forwards=(diffprune.FeedForwardLayout(("first",), "second"),))
    with pytest.raises(ModelError, match=r"input 'x'.*example_inputs"):
        diffprune.plan(Unknown(), criterion="random")


def test_facts_that_fit_no_model_are_refused() -> None:
    with pytest.raises(ModelError, match="channels=True"):
        diffprune.register_family("Mine", fixed_outputs=("last",))
    with pytest.raises(ModelError, match="queries, keys and values"):
        diffprune.register_family("Mine", attentions=(diffprune.AttentionLayout(outputs=("out",)),))


def test_the_python_of_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(compile(code, PAGE.name, "exec"), {})
    assert f"It prints `{capsys.readouterr().out.strip()}`." in PAGE.read_text()
