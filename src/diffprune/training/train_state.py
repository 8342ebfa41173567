"""Training state: a copy of the denoiser with its optimizer, learning-rate schedule and EMA weights."""

import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.training.fsdp import gathered, name_blocks, shard_frozen, swapped
from diffprune.training.history import DivergenceError
from diffprune.training.lora import add_adapters, merge_adapters


class TrainState:
    """A copy of a denoiser in fp32, prepared for training on this rank's device or sharded over all ranks.

    bare: the module without wrappers. model: the module that accelerate prepared. rates: learning-rate schedule.
    Raises OptionError where the launcher names FSDP layer classes that the denoiser does not have.
    """

    def __init__(
        self, denoiser: nn.Module, options: TrainingOptions, accelerator: Accelerator, device: torch.device
    ) -> None:
        self.options, self.accelerator, self.device = options, accelerator, device
        self.dtype = next(denoiser.parameters()).dtype
        self.original, self.sharded = denoiser, bool(accelerator.is_fsdp2)
        start = torch.device("cpu") if self.sharded else device  # FSDP moves each shard to its device
        self.bare = _cast(copy.deepcopy(denoiser).to(start), torch.float32).train().requires_grad_(True)
        self._adapt(self.bare)
        self.dropouts: dict[nn.Module, float] = {m: m.p for m in self.bare.modules() if isinstance(m, nn.Dropout)}
        for module in self.bare.modules():
            if isinstance(module, nn.Dropout) and options.dropout is not None:
                module.p = options.dropout
        if self.sharded:
            name_blocks(accelerator, self.bare)
        optimizer = optimizer_of(options)(self.trainable(self.bare))
        self.model, self.optimizer = accelerator.prepare(self.bare, optimizer, device_placement=[False, False])
        name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
        self.rates = get_scheduler(
            name, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
        )
        self.ema = EMAModel(self.trainable(self.bare), decay=options.ema_decay, foreach=True)

    def _adapt(self, model: nn.Module) -> None:
        """Add LoRA adapters if the options request them."""
        rank = self.options.lora_rank if isinstance(self.options, FinetuneOptions) else None
        if rank is not None:
            add_adapters(model, rank, self.options.seed)

    @staticmethod
    def trainable(model: nn.Module) -> list[nn.Parameter]:
        """Return the trainable parameters: all, or the adapters' alone."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def place(self, model: nn.Module) -> nn.Module:
        """Move or shard a frozen model, such as a teacher, as this one is."""
        return shard_frozen(self.accelerator, model) if self.sharded else model.to(self.device)

    def update(self, step: int) -> None:
        """Update weights, learning rate and EMA after the backward pass that completes a step.

        Raises DivergenceError before any update when the gradient is not finite. In fp16 the loss scaling of accelerate
        skips such a step instead.
        """
        if self.accelerator.sync_gradients:
            clip = math.inf if self.options.grad_clip is None else self.options.grad_clip
            norm: Any = self.accelerator.clip_grad_norm_(self.bare.parameters(), clip)
            norm = gathered(norm, self.device)
            if self.accelerator.scaler is None and not math.isfinite(norm):
                raise DivergenceError(f"the norm of the gradient is {float(norm)} at step {step + 1}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.rates.step()
            self.ema.step(self.trainable(self.bare))

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """Yield the model with its EMA weights in eval mode: a copy, or the sharded model with its weights swapped."""
        if not self.sharded:
            yield self.averaged()
            return
        with swapped(self.bare, self.trainable(self.bare), self.ema.shadow_params):
            self.bare.eval()
            try:
                yield self.bare
            finally:
                self.bare.train()

    def averaged(self, weights: Sequence[Tensor] | None = None) -> Any:
        """Return a copy of the model in fp32, in eval mode, with its original dropout and with adapters merged.

        weights: values of the trainable parameters; None for the EMA weights. The copy of a sharded model is in main
        memory, and all ranks must call this.
        """
        if self.sharded:
            trained = _cast(copy.deepcopy(self.original), torch.float32).requires_grad_(True)
            self._adapt(trained)
        else:
            trained = copy.deepcopy(self.bare)
            for module, original in zip(trained.modules(), self.bare.modules(), strict=True):
                if isinstance(module, nn.Dropout):
                    module.p = self.dropouts[original]
        with torch.no_grad():
            for parameter, value in zip(self.trainable(trained), weights or self.ema.shadow_params, strict=True):
                parameter.copy_(gathered(value, self.device))
        merge_adapters(trained)
        return trained.requires_grad_(True).eval()

    def result(self, device: torch.device, weights: Sequence[Tensor] | None = None) -> Any:
        """Return `averaged` on a device, in the dtype of the original model."""
        model = self.averaged(weights).to(device)
        for name in ("forward", "_original_forward"):  # accelerate's wrapper, which would autocast forever
            vars(model).pop(name, None)
        return _cast(model, self.dtype)


MAX_PRECONDITIONED_WIDTH = 512
"""Largest dimension that SOAP preconditions; along larger ones it is Adam."""

FUSED = ("adam", "adamw")
"""Optimizers with a fused step in torch: one pass over the weights, on CPUs, GPUs and shards."""


def optimizer_of(options: TrainingOptions) -> Callable[..., torch.optim.Optimizer]:
    """Return the optimizer as a function of the parameters: torch's, or SOAP (Vyas et al., ICLR 2025)."""
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "soap":
        from pytorch_optimizer import SOAP  # importing it takes 0.25 s

        return functools.partial(SOAP, max_precondition_dim=MAX_PRECONDITIONED_WIDTH, **common)
    names = {name.lower(): name for name in vars(torch.optim)}
    momentum = {"momentum": 0.9} if options.optimizer in ("sgd", "rmsprop") else {}
    fused = {"fused": True} if options.optimizer in FUSED else {}
    return functools.partial(getattr(torch.optim, names[options.optimizer]), **common, **momentum, **fused)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if next(model.parameters()).dtype == dtype else nn.Module.to(model, dtype)
