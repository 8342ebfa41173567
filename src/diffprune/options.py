"""Every stage's options, once: the Python API, the command line, recipes and `run.json` derive from these.

A field's description is its help text; units and ranges stand in it. Nothing here imports torch.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from diffprune.errors import OptionError

Criterion = Literal["random", "magnitude", "taylor", "diff-pruning"]
Sampler = Literal["ddim", "ddpm"]
Grid = Literal["uniform", "quad"]
Metric = Literal["ssim", "mse", "frechet_distance"]

T = TypeVar("T")

CALIBRATED_CRITERIA = ("taylor", "diff-pruning")
"""Criteria that look at images (and at weights); the others need weights alone or nothing."""


class Options(BaseModel):
    """Base of all option sets: frozen, and unknown names are mistakes.

    Options that exclude each other are checked on the later field, so that all mistakes are reported together
    (a check of the whole set would run only once every field is valid).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def resolved(self) -> dict[str, Any]:
        """All options with their values, as JSON types (for `run.json`)."""
        return self.model_dump(mode="json")


class ComputeOptions(Options):
    """Options of every stage that computes."""

    seed: int = Field(default=0, ge=0, description="seed of everything random in this stage")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")


class PlanOptions(ComputeOptions):
    """Which units to keep: scores of a criterion, turned into a plan by a budget."""

    ratio: float = Field(default=0.3, gt=0, lt=1, description="share of each group's units to remove, between 0 and 1")
    criterion: Criterion | None = Field(
        default=None,
        description="how units are scored (default: diff-pruning; random for an architecture without weights)",
    )
    data: str | None = Field(
        default=None, description="images to calibrate on: a folder, a parquet file, a dataset id or `digits`"
    )
    num_calibration_images: int = Field(default=128, ge=1, description="images in the calibration batch")
    threshold: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="diff-pruning: stop at the first timestep with loss / largest loss below this",
    )
    timestep_stride: int = Field(
        default=1, ge=1, description="score every n-th timestep only (1 is the published pass)"
    )
    power: Literal[1, 2] = Field(default=1, description="diff-pruning: sum of |w*G| (1) or of (w*G)^2 (2)")
    norms: bool = Field(default=False, description="diff-pruning: add |w*G| of the norm weights")
    batch_size: int = Field(
        default=128, ge=1, description="images per backward pass (memory only; the scores stay the same)"
    )

    @field_validator("threshold", "power", "norms")
    @classmethod
    def _belongs_to_diff_pruning(cls, value: T, info: ValidationInfo) -> T:
        if info.data.get("criterion") not in (None, "diff-pruning"):
            raise ValueError(f"belongs to diff-pruning, not to criterion {info.data['criterion']!r}; leave it out")
        return value


class PruneOptions(Options):
    """How a plan is carried out."""

    reinit: bool = Field(
        default=False, description="fresh weights in the pruned architecture (the scratch-training baseline)"
    )
    seed: int = Field(default=0, ge=0, description="seed of everything random in this stage, such as fresh weights")


class TrainingOptions(ComputeOptions):
    """The training loop, shared by training from scratch and finetuning."""

    data: str | None = Field(
        default=None, description="training images: a folder, a parquet file, a dataset id or `digits`"
    )
    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    batch_size: int = Field(
        default=128, ge=1, description="images per optimizer step, over all processes and accumulation"
    )
    accumulation_steps: int = Field(default=1, ge=1, description="backward passes per optimizer step")
    optimizer: Literal["adam", "adamw"] = Field(default="adamw", description="optimizer")
    learning_rate: float = Field(default=2e-4, gt=0, description="peak learning rate")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate after the warm-up"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    grad_clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm; none switches clipping off")
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="limit of the weights' moving average; step n uses min(this, (1+n)/(10+n))",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout probability while training (default: as is)"
    )
    flip: bool = Field(default=True, description="mirror half of the images (switch off for digits or text)")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        default="no", description="precision of forward and backward"
    )
    num_workers: int = Field(default=0, ge=0, description="processes that decode images")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    log_every: int = Field(default=10, ge=1, description="steps between logged losses")
    preview_every: int = Field(
        default=0, ge=0, description="steps between image grids drawn with the EMA weights (0: none)"
    )
    preview_steps: int = Field(
        default=50, ge=1, description="inference steps of a preview, with the model's own scheduler"
    )
    tracker: Literal["tensorboard", "wandb", "none"] = Field(
        default="tensorboard", description="where losses are logged"
    )


class TrainOptions(TrainingOptions):
    """Training from scratch."""

    architecture: str = Field(default="ddpm-cifar10", description="built-in architecture or the path of a config.json")
    num_train_timesteps: int = Field(default=1000, ge=2, description="T, timesteps of the noise schedule")
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = Field(
        default="linear", description="noise schedule (linear runs from 1e-4 to 0.02 at any T)"
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field(
        default="epsilon", description="what the denoiser predicts"
    )


class FinetuneOptions(TrainingOptions):
    """Recovery of a pruned model."""

    teacher_weight: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="with a teacher: weight of its output in the loss; the rest weighs the noise error",
    )


class SampleOptions(ComputeOptions):
    """Drawing images."""

    num: int = Field(default=64, ge=1, description="number of images")
    steps: int = Field(default=100, ge=1, description="members of the timestep grid, before repeats are dropped")
    sampler: Sampler = Field(default="ddim", description="DDIM or ancestral DDPM steps")
    grid: Grid = Field(default="uniform", description="spacing of the timesteps")
    eta: float = Field(default=0.0, ge=0, le=1, description="DDIM: share of the ancestral noise (0 is deterministic)")
    batch_size: int = Field(default=64, ge=1, description="images per forward pass (the images do not depend on it)")

    @field_validator("eta")
    @classmethod
    def _belongs_to_ddim(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("sampler") == "ddpm":
            raise ValueError("belongs to the ddim sampler, not to ddpm; leave it out")
        return value


class EvaluateOptions(Options):
    """Comparing two sets of images."""

    metrics: tuple[Metric, ...] = Field(
        default=("ssim", "mse"),
        description="ssim and mse compare pairs of one image index; frechet_distance compares sets",
    )
    batch_size: int = Field(default=256, ge=1, description="images per batch")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")


class ClassifierOptions(ComputeOptions):
    """Training the digit classifier whose features `frechet_distance` uses."""

    steps: int = Field(default=1500, ge=1, description="optimizer steps")
    batch_size: int = Field(default=128, ge=1, description="images per step")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate (cosine to 0)")


class InspectOptions(Options):
    """Looking at a model."""

    latency: bool = Field(default=True, description="time a forward pass (models with weights only)")
    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one")


Set = TypeVar("Set", bound=Options)


def parse_options(kind: type[Set], values: Mapping[str, Any], *, what: str) -> Set:
    """Validate `values` as one option set; raises OptionError that lists all mistakes at once."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise OptionError(f"{what}:\n" + "\n".join(explain(error, kind))) from None


def explain(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One line per mistake: where, what was got, what was expected, the near match of an unknown name."""
    from difflib import get_close_matches

    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        got = item["input"]
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            known = _fields_at(kind, item["loc"][:-1])
            near = get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            lines.append(f"  {where}: no such option; {hint}")
        elif item["type"] == "literal_error":
            choices = [c.strip(" '") for c in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
            near = get_close_matches(str(got), choices, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            lines.append(f"  {where}: got {got!r}, expected one of {', '.join(choices)}{hint}")
        elif item["type"] == "missing":
            lines.append(f"  {where}: missing")
        elif item["type"] == "value_error":
            lines.append(f"  {where + ': ' if where else ''}{message}")
        else:
            lines.append(f"  {where}: got {got!r}; {message[0].lower()}{message[1:]}")
    return lines


def _fields_at(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    from typing import get_args

    for part in path:
        annotation = kind.model_fields[str(part)].annotation
        inner = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not inner:
            return []
        kind = inner[0]
    return list(kind.model_fields)
