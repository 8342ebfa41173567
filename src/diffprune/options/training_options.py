"""Options of `train`, `finetune` and the digit classifier."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.image_options import ImageOptions
from diffprune.options.in_memory import DataSource
from diffprune.options.option_set import ComputeOptions, Groups, PrecisionOptions
from diffprune.options.prompt_options import GenerationOptions

Optimizer = Literal["adafactor", "adagrad", "adam", "adamax", "adamw", "nadam", "radam", "rmsprop", "sgd", "soap"]

OPTIMIZER_HELP = (
    "optimizer\n"
    "adafactor, adagrad, adam, adamax, adamw, nadam, radam, rmsprop, sgd (of torch.optim; rmsprop and sgd with "
    "momentum 0.9) or soap (Adam in the eigenbasis of Shampoo: fewer steps, more memory)"
)


class TrainingOptions(ImageOptions, PrecisionOptions, ComputeOptions):
    """Options of the training loop, for training from scratch and for finetuning."""

    neutral = ComputeOptions.neutral | {
        "num_workers", "gradient_checkpointing", "checkpoint_every", "keep_checkpoints", "preview_every",
        "preview_steps", "tracker",
    }  # fmt: skip

    groups: ClassVar[Groups] = {
        "data": ("data", "flip", "class_dropout"),
        "training": (
            "steps", "batch_size", "learning_rate", "optimizer", "schedule", "warmup_steps", "weight_decay",
            "grad_clip", "accumulation_steps", "ema_decay", "dropout", "timestep_sampling",
        ),
        "device and memory": ("device", "mixed_precision", "gradient_checkpointing", "num_workers"),
        "validation": ("num_validation_images", "validate_every", "early_stop"),
        "checkpoints and logs": (
            "checkpoint_every", "keep_checkpoints", "log_every", "preview_every", "preview_steps", "tracker",
        ),
    }  # fmt: skip

    data: DataSource | None = Field(
        default=None,
        description=(
            "training images (required)\n"
            "a folder, parquet file, dataset id, digits, or generated (by the model itself); classes: "
            "column label or a subfolder per class; texts: column text or caption, or metadata.jsonl"
        ),
    )
    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    batch_size: int = Field(default=128, ge=1, description="images per optimizer step, over all ranks")
    accumulation_steps: int = Field(default=1, ge=1, description="backward passes per optimizer step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations: less memory, slower",
    )
    optimizer: Optimizer = Field(default="adamw", description=OPTIMIZER_HELP)
    learning_rate: float = Field(
        default=None, validate_default=True, gt=0, description="peak learning rate (default: 1e-3 for soap, else 2e-4)"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate after the warm-up"
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    grad_clip: float | None = Field(default=1.0, gt=0, description="maximum gradient norm; none: no clipping")
    ema_decay: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description=(
            "maximum decay of the EMA weights\nstep n uses min(decay, n/(9+n)): an average of about the last n/9 steps"
        ),
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout probability (default: as in the model)"
    )
    class_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "share of images trained without their class\nenables classifier-free guidance of class-conditional models"
        ),
    )
    flip: bool = Field(
        default=True,
        description=(
            "mirror half of the images; off for digits or text\n"
            "cached latents of text-conditioned models are not mirrored"
        ),
    )
    timestep_sampling: Literal["auto", "uniform", "logit-normal"] = Field(
        default="auto",
        description=(
            "distribution of the training timesteps\n"
            "uniform; logit-normal: more in the middle; auto: logit-normal for flow matching, else "
            "uniform"
        ),
    )
    # Training also supports fp16, because it scales its losses; the type checker minds the wider type.
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(  # type: ignore[assignment]
        default="auto",
        description=(
            "autocast dtype; auto: bf16 if native, else fp32\n"
            "auto, no (fp32), bf16 or fp16; native: GPUs since Ampere, CPUs with AVX512-BF16 or AMX"
        ),
    )
    num_workers: int = Field(default=0, ge=0, description="processes that decode images")
    num_validation_images: int = Field(
        default=0,
        ge=0,
        description=(
            "held-out images; 0: no validation\n"
            "the result is then the EMA weights with the lowest validation error, else the last"
        ),
    )
    validate_every: int = Field(default=100, ge=1, description="steps between validations")
    early_stop: int | None = Field(
        default=None,
        ge=1,
        description="stop after N validations without progress (default: never)",
    )
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(
        default=2,
        ge=1,
        description=("number of checkpoints to keep\na damaged checkpoint is replaced by the one before it"),
    )
    log_every: int = Field(default=10, ge=1, description="steps between logged losses")
    preview_every: int = Field(default=0, ge=0, description="steps between previews of EMA samples; 0: none")
    preview_steps: int = Field(
        default=50, ge=1, description=("sampling steps of a preview\nwith the model's scheduler")
    )
    tracker: Literal["tensorboard", "wandb", "none"] = Field(default="tensorboard", description="where to log losses")

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _of_optimizer(cls, value: float | None, info: ValidationInfo) -> float:
        own = 1e-3 if info.data.get("optimizer") == "soap" else 2e-4
        return own if value is None else value

    @field_validator("early_stop")
    @classmethod
    def _needs_validation(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("num_validation_images") == 0:
            raise ValueError("needs num_validation_images; set it, for example to 256")
        return value


class TrainOptions(TrainingOptions):
    """Options of `train`."""

    groups: ClassVar[Groups] = {"model": ("architecture", "num_train_timesteps", "beta_schedule", "prediction_type")}

    architecture: str = Field(default="ddpm-cifar10", description="built-in architecture or config.json")
    num_train_timesteps: int = Field(default=1000, ge=2, description="T, number of timesteps of the noise schedule")
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = Field(
        default="linear", description=("noise schedule\nlinear (1e-4 to 0.02 at any T) or squaredcos_cap_v2")
    )
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field(
        default="epsilon", description="what the denoiser predicts"
    )


class FinetuneOptions(GenerationOptions, TrainingOptions):
    """Options of `finetune`."""

    groups: ClassVar[Groups] = {
        "data": ("data", "num_generated"),
        "training": ("steps", "batch_size", "learning_rate", "optimizer", "lora_rank", "loss_weighting"),
        "distillation": ("teacher_weight", "feature_weight", "teacher_dtype"),
    }  # fmt: skip

    num_generated: int = Field(default=256, ge=1, description="data generated: number of images to generate")

    optimizer: Optimizer = Field(default="soap", description=OPTIMIZER_HELP)
    teacher_weight: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description=("weight of the teacher's output in the loss\nthe noise error has 1 minus this weight"),
    )
    lora_rank: int | None = Field(
        default=None,
        ge=1,
        description=(
            "train LoRA adapters of this rank (default: all weights)\n"
            "base weights are frozen and adapters are merged at the end: less memory"
        ),
    )
    feature_weight: float = Field(
        default=0.0,
        ge=0,
        description=(
            "weight of the teacher's block outputs in the loss\neach error is divided by the teacher's mean square"
        ),
    )
    teacher_dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description=("dtype of the teacher\nauto (bf16 on a GPU, else as stored, fp16 as fp32), fp32 or bf16"),
    )
    loss_weighting: Literal["uniform", "min-snr"] = Field(
        default="uniform", description=("weights of the timesteps in the loss\nuniform, or min-snr: min(SNR, 5) / SNR")
    )


class ClassifierOptions(ComputeOptions):
    """Options of the digit classifier, whose features `frechet_distance` uses."""

    groups: ClassVar[Groups] = {"training": ("steps", "batch_size", "learning_rate")}

    steps: int = Field(default=1500, ge=1, description="optimizer steps")
    batch_size: int = Field(default=128, ge=1, description="images per optimizer step")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate; cosine schedule to 0")
