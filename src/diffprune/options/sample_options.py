"""Options of `sample`."""

from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.option_set import ComputeOptions, Groups, PrecisionOptions
from diffprune.options.prompt_options import PromptOptions

Sampler = Literal["ddim", "ddpm"]
Grid = Literal["uniform", "quad"]

T = TypeVar("T")


class SampleOptions(PromptOptions, PrecisionOptions, ComputeOptions):
    """Options of `sample`."""

    neutral = frozenset({"device", "batch_size"})

    groups: ClassVar[Groups] = {
        "images": ("num", "classes", "per_class", "interpolate", "sequence"),
        "sampler": ("steps", "scheduler", "sampler", "grid", "eta", "guidance_scale"),
        "text and video models": ("prompts", "negative_prompt"),
        "device and memory": ("device", "batch_size"),
    }  # fmt: skip

    num: int = Field(default=64, ge=1, description="number of images")
    steps: int = Field(default=100, ge=1, description="sampling steps; the quad grid may merge some")
    scheduler: str | None = Field(
        default=None,
        description=("diffusers scheduler class (default: --sampler and --grid)\nown: the scheduler of the model"),
    )
    sampler: Sampler = Field(default="ddim", description="DDIM or ancestral DDPM")
    grid: Grid = Field(default="uniform", description="spacing of the timesteps")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM: share of ancestral noise; 0 is deterministic")
    classes: str | None = Field(
        default=None,
        description=("classes to sample in turn (default: all)\nsuch as 0-9 or 3,5,8"),
    )
    per_class: int | None = Field(
        default=None, ge=1, description="images per class, instead of --num (default: not used)"
    )
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        description=(
            "classifier-free guidance scale; 1 is none (default: none)\ntext-conditioned models: the pipeline's"
        ),
    )
    negative_prompt: str | None = Field(default=None, description="what the images should not show (default: none)")
    sequence: bool = Field(default=False, description="also save the images of every step, and an animation")
    interpolate: tuple[int, int] | None = Field(
        default=None, description="interpolate the noises of two image indices (default: off)"
    )
    batch_size: int = Field(default=64, ge=1, description="images per forward pass; does not change the images")

    @field_validator("classes", mode="before")
    @classmethod
    def _accept_numbers(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, list | tuple | range) else value

    @field_validator("classes")
    @classmethod
    def _is_a_list_of_classes(cls, value: str | None) -> str | None:
        if value is not None:
            class_list(value)
        return value

    @field_validator("per_class")
    @classmethod
    def _needs_classes(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("classes") is None:
            raise ValueError("needs classes; set classes, for example to 0-9")
        return value

    @field_validator("sampler", "grid", "eta")
    @classmethod
    def _not_with_a_scheduler(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("scheduler") is not None:
            raise ValueError("has no effect with scheduler, which sets its own; remove one of the two")
        return value

    @field_validator("eta")
    @classmethod
    def _belongs_to_ddim(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("sampler") == "ddpm":
            raise ValueError("is an option of sampler ddim, not of ddpm; remove it")
        return value

    @field_validator("interpolate")
    @classmethod
    def _two_images(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and (min(value) < 0 or value[0] == value[1]):
            raise ValueError(f"got {value[0]} and {value[1]}, expected two different image indices, at least 0")
        return value

    @property
    def is_guided(self) -> bool:
        """Return whether each step takes two forward passes, with and without the class."""
        return self.guidance_scale not in (None, 1)

    @property
    def num_images(self) -> int:
        """Return the number of images: `num`, or `per_class` of each class."""
        return self.num if self.per_class is None else self.per_class * len(class_list(self.classes or ""))


def class_list(text: str) -> list[int]:
    """Return the classes of text such as `0-9` or `3,5,8-10`, in its order; raises ValueError otherwise."""
    classes: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or (last and int(last) < int(first)):
            raise ValueError(f"got {text!r}, expected classes such as 0-9 or 3,5,8")
        classes += range(int(first), int(last or first) + 1)
    return classes
