"""Conditioning kwargs are split and concatenated by row."""

import pytest
import torch

from diffprune.errors import ModelError
from diffprune.pipelines.conditioning import rows_of, select_rows

IS_ROWS = (False, True, False, True)
"""Of the leaves of `told`, in the order of the dictionary."""


def told(first: int, num: int, *, length: int = 2, ids: float = 1.0, words: str = "a") -> dict[str, object]:
    text = torch.arange(first, first + num).float()[:, None].expand(num, length)
    return {"ids": torch.full((3,), ids), "text": text, "words": words, "shapes": [(1, first + i) for i in range(num)]}


def test_batches_are_put_together_as_they_were_taken_apart() -> None:
    whole = told(0, 5)
    parts = [select_rows(whole, IS_ROWS, mine) for mine in (slice(0, 2), [2, 3, 4])]
    again = rows_of(parts, IS_ROWS)
    assert torch.equal(again["text"], whole["text"])
    assert torch.equal(again["ids"], whole["ids"])
    assert again["words"] == "a"
    assert again["shapes"] == whole["shapes"]
    assert select_rows(whole, IS_ROWS, [3, 3, 0])["shapes"] == [(1, 3), (1, 3), (1, 0)]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (told(2, 3, length=4), "the length of the text conditioning differs between batches; use a batch_size"),
        (told(2, 3, ids=2.0), "shared by all prompts differs between batches; use a batch_size"),
        (told(2, 3, words="b"), "shared by all prompts differs between batches; use a batch_size"),
        ({"text": torch.zeros(3, 2)}, "the conditioning differs between batches; use a batch_size"),
    ],
)
def test_batches_that_do_not_belong_together_are_refused(other: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rows_of([told(0, 2), other], IS_ROWS)
