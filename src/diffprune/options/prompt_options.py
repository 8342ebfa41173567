"""Options of stages that run a text-conditioned pipeline."""

from pathlib import Path

from pydantic import Field

from diffprune.options.option_set import Options


class PromptOptions(Options):
    """What a text-conditioned pipeline is called with."""

    prompts: Path | None = Field(
        default=None,
        description="text-conditioned models: file of prompts, one a line, used in turn; of a .jsonl the rows, which "
        "may name images too",
    )
    height: int | None = Field(
        default=None, ge=1, description="text-conditioned models: height in pixels (default: the pipeline's own)"
    )
    width: int | None = Field(
        default=None, ge=1, description="text-conditioned models: width in pixels (default: the pipeline's own)"
    )
    num_frames: int | None = Field(
        default=None, ge=1, description="video models: frames of each video (default: the pipeline's own)"
    )

    def call(self) -> dict[str, int | None]:
        """The arguments of a pipeline's call beside its prompts; None is the pipeline's own default."""
        exact = None if self.height is None and self.width is None else False
        area = None if self.height is None or self.width is None else self.height * self.width
        return {
            "height": self.height, "width": self.width, "num_frames": self.num_frames, "use_resolution_binning": exact,
            "max_area": area, "_auto_resize": exact,
        }  # fmt: skip


class GenerationOptions(PromptOptions):
    """How a model draws images of its own to learn from."""

    generation_steps: int = Field(
        default=20, ge=1, description="steps for each image that the model draws itself, with data `generated`"
    )
    generation_guidance: float | None = Field(
        default=None,
        ge=0,
        description="guidance scale of images that a conditional model draws itself (default: none; the pipeline's own "
        "where the denoiser is told it, as in FLUX.1-dev)",
    )
