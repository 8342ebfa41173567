"""Plans as files."""

from pathlib import Path

import diffprune
from diffprune.planning import fingerprint

from conftest import tiny_unet


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = diffprune.plan(tiny_unet(), criterion="magnitude", ratio=0.4)
    plan.save(tmp_path / "plan.json")
    assert diffprune.read_plan(tmp_path / "plan.json") == plan


def test_the_same_inputs_give_the_same_plan() -> None:
    plans = [diffprune.plan(tiny_unet(), criterion="random", seed=5) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != diffprune.plan(tiny_unet(), criterion="random", seed=6)


def test_the_fingerprint_is_of_the_architecture() -> None:
    assert fingerprint(tiny_unet()) == fingerprint(tiny_unet().to("meta"))
    assert fingerprint(tiny_unet()) != fingerprint(tiny_unet(layers_per_block=2))
