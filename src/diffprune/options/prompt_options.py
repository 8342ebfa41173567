"""Options of stages that call a text-conditioned pipeline, and of the training images that it generates."""

from typing import ClassVar

from pydantic import Field

from diffprune.options.in_memory import PromptSource
from diffprune.options.option_set import Groups, Options


class PromptOptions(Options):
    """Prompts and sizes for a call of a text-conditioned pipeline."""

    groups: ClassVar[Groups] = {"text and video models": ("prompts", "height", "width", "num_frames")}

    prompts: PromptSource | None = Field(
        default=None,
        description=(
            "file of prompts, one per line, used in turn (default: none)\n"
            "a .jsonl file has one object per line, which may also name images"
        ),
    )
    height: int | None = Field(default=None, ge=1, description="image height in pixels (default: the pipeline's)")
    width: int | None = Field(default=None, ge=1, description="image width in pixels (default: the pipeline's)")
    num_frames: int | None = Field(default=None, ge=1, description="frames per video (default: the pipeline's)")

    def call(self) -> dict[str, int | None]:
        """Return the arguments of a pipeline call without its prompts; None is the default of the pipeline."""
        # A size that the user sets must be exact. Some pipelines would change it: by binning to trained resolutions
        # (use_resolution_binning), by scaling to max_area, 1024^2 pixels by default, or by taking a preferred aspect
        # ratio (_auto_resize).
        exact = None if self.height is None and self.width is None else False
        area = None if self.height is None or self.width is None else self.height * self.width
        return {
            "height": self.height, "width": self.width, "num_frames": self.num_frames, "use_resolution_binning": exact,
            "max_area": area, "_auto_resize": exact,
        }  # fmt: skip


class GenerationOptions(PromptOptions):
    """Options of data `generated`: how the model generates its training images."""

    groups: ClassVar[Groups] = {
        "text and video models": (
            "prompts", "height", "width", "num_frames", "generation_steps", "generation_guidance",
        ),
    }  # fmt: skip

    generation_steps: int = Field(default=20, ge=1, description="data generated: sampling steps per image")
    generation_guidance: float | None = Field(
        default=None,
        ge=0,
        description=(
            "data generated: guidance scale (default: no guidance)\n"
            "guidance-distilled models such as FLUX.1-dev: the pipeline's"
        ),
    )
