"""Options of `train`, `finetune` and the digit classifier."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from diffprune.options.image_options import ImageOptions
from diffprune.options.option_set import ComputeOptions, PrecisionOptions
from diffprune.options.prompt_options import GenerationOptions

Optimizer = Literal["adafactor", "adagrad", "adam", "adamax", "adamw", "nadam", "radam", "rmsprop", "sgd", "soap"]

OF_OPTIMIZER = (
    "of torch.optim (sgd and rmsprop with momentum 0.9), or soap: Adam in the eigenbasis of Shampoo, which takes fewer "
    "steps and more memory"
)


class TrainingOptions(ImageOptions, PrecisionOptions, ComputeOptions):
    """The training loop, shared by training from scratch and finetuning."""

    neutral = ComputeOptions.neutral | {
        "num_workers", "gradient_checkpointing", "checkpoint_every", "keep_checkpoints", "preview_every",
        "preview_steps", "tracker",
    }  # fmt: skip

    data: str | None = Field(
        default=None,
        description="training images: a folder, a parquet file, a dataset id or `digits`; for class-conditional models "
        "with a column `label`, or a sub-folder per class; for text-conditioned ones with a column `text` or "
        "`caption`, a metadata.jsonl in the folder, or `generated`: drawn by the model itself",
    )
    steps: int = Field(default=1000, ge=1, description="optimizer steps")
    batch_size: int = Field(
        default=128, ge=1, description="images per optimizer step, over all processes and accumulation"
    )
    accumulation_steps: int = Field(default=1, ge=1, description="backward passes per optimizer step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep no activations inside blocks, compute them again in the backward pass: less memory, slower",
    )
    optimizer: Optimizer = Field(default="adamw", description=OF_OPTIMIZER)
    learning_rate: float = Field(
        default=None, validate_default=True, gt=0, description="peak learning rate (default: 1e-3 of soap, else 2e-4)"
    )
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
        description="limit of the weights' moving average; step n uses min(this, n/(9+n)), an average over about the "
        "last n/9 steps, so that short runs do not hang on their start",
    )
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="dropout probability while training (default: as is)"
    )
    class_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="class-conditional models: share of images whose class is kept from the model, for guidance",
    )
    flip: bool = Field(
        default=True,
        description="mirror half of the images (switch off for digits or text); latents of text-conditioned models are "
        "computed once and not mirrored",
    )
    timestep_sampling: Literal["auto", "uniform", "logit-normal"] = Field(
        default="auto",
        description="how training draws timesteps: uniform, or logit-normal, where those in the middle come more often "
        "(auto: logit-normal for flow matching, uniform for others)",
    )
    # More than other stages take, which the type checker minds: training scales its losses, as fp16 needs.
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = Field(  # type: ignore[assignment]
        default="auto",
        description="precision of forward and backward: auto is bf16 where the device has units for it (GPUs since "
        "Ampere, CPUs with AVX512-BF16 or AMX), else no, which is fp32",
    )
    num_workers: int = Field(default=0, ge=0, description="processes that decode images")
    num_validation_images: int = Field(
        default=0,
        ge=0,
        description="images held out from training, each with a noise and a timestep, on which the EMA weights are "
        "measured; the best weights are the result (0: none, and the last are)",
    )
    validate_every: int = Field(default=100, ge=1, description="steps between validations")
    early_stop: int | None = Field(
        default=None,
        ge=1,
        description="stop when the validation error has not fallen for so many validations (default: never)",
    )
    checkpoint_every: int = Field(default=500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="checkpoints that stay while training; a damaged one gives way to the one before"
    )
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

    @field_validator("learning_rate", mode="before")
    @classmethod
    def _of_optimizer(cls, value: float | None, info: ValidationInfo) -> float:
        own = 1e-3 if info.data.get("optimizer") == "soap" else 2e-4
        return own if value is None else value

    @field_validator("early_stop")
    @classmethod
    def _needs_validation(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("num_validation_images") == 0:
            raise ValueError("needs num_validation_images")
        return value


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


class FinetuneOptions(GenerationOptions, TrainingOptions):
    """Recovery of a pruned model."""

    num_generated: int = Field(
        default=256, ge=1, description="text-conditioned models: images that the model draws itself to learn from"
    )

    optimizer: Optimizer = Field(default="soap", description=OF_OPTIMIZER)
    teacher_weight: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="with a teacher: weight of its output in the loss; the rest weighs the noise error",
    )
    lora_rank: int | None = Field(
        default=None,
        ge=1,
        description="train adapters of this rank beside frozen weights, merged at the end, where training all weights "
        "takes too much memory (default: all weights train)",
    )
    feature_weight: float = Field(
        default=0.0,
        ge=0,
        description="with a teacher: weight of the difference of what blocks give, each over the teacher's mean square",
    )
    teacher_dtype: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="what the teacher computes in; auto: bf16 on a GPU, as it is stored elsewhere"
    )
    loss_weighting: Literal["uniform", "min-snr"] = Field(
        default="uniform", description="what timesteps count in the loss: all alike, or min(SNR, 5) / SNR"
    )


class ClassifierOptions(ComputeOptions):
    """Training the digit classifier whose features `frechet_distance` uses."""

    steps: int = Field(default=1500, ge=1, description="optimizer steps")
    batch_size: int = Field(default=128, ge=1, description="images per step")
    learning_rate: float = Field(default=2e-3, gt=0, description="peak learning rate (cosine to 0)")
