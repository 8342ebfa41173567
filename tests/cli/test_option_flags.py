"""Error messages of the command line name options as flags."""

import pytest

from diffprune.cli.option_flags import with_flags

OPTIONS = ("ratio", "keep_macs", "num", "data", "prompts", "num_calibration_images")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set num_calibration_images to at most 12", "set --num-calibration-images to at most 12"),
        ("wrong:\n  ratio: got 2", "wrong:\n  --ratio: got 2"),
        ("a plan (ratio: was 0.3, is 0.5, data: was a)", "a plan (--ratio: was 0.3, is 0.5, --data: was a)"),
        ("leave out ratio, keep_macs, or leave out the plan", "leave out --ratio, --keep-macs, or leave out the plan"),
        ("set data or prompts", "set --data or --prompts"),
    ],
)  # fmt: skip
def test_options_become_flags(message: str, expected: str) -> None:
    assert with_flags(message, OPTIONS) == expected


@pytest.mark.parametrize(
    "message",
    [
        "plan.keep_macs: got 2",
        "out/keep_macs/run.json is damaged",
        "the ratio of the data is wrong",
        "no file 'num_calibration_images'",
    ],
)
def test_other_words_remain(message: str) -> None:
    assert with_flags(message, OPTIONS) == message
    assert with_flags(f"set num to 3; {message}", ()) == f"set num to 3; {message}"
