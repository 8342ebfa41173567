"""What trains: a copy of the model with its optimizer, its learning rates and its moving average."""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffprune.options import FinetuneOptions, TrainingOptions
from diffprune.recovery.adapters import add_adapters, merge_adapters
from diffprune.recovery.checkpoints import keep_unwrapped
from diffprune.recovery.journal import DivergenceError


class Learner:
    """A copy of a denoiser in fp32, prepared for training on this process's device."""

    def __init__(
        self, denoiser: nn.Module, options: TrainingOptions, accelerator: Accelerator, device: torch.device
    ) -> None:
        self.options, self.accelerator, self.device = options, accelerator, device
        self.dtype = next(denoiser.parameters()).dtype
        self.bare = _cast(copy.deepcopy(denoiser).to(device), torch.float32).train().requires_grad_(True)
        rank = options.lora_rank if isinstance(options, FinetuneOptions) else None
        if rank is not None:
            add_adapters(self.bare, rank, options.seed)
        self.dropouts: dict[nn.Module, float] = {m: m.p for m in self.bare.modules() if isinstance(m, nn.Dropout)}
        for module in self.bare.modules():
            if isinstance(module, nn.Dropout) and options.dropout is not None:
                module.p = options.dropout
        optimizer = optimizer_of(options)(self.learning(self.bare))
        self.model, self.optimizer = accelerator.prepare(self.bare, optimizer, device_placement=[False, False])
        name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
        self.rates = get_scheduler(
            name, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
        )
        self.ema = EMAModel(self.learning(self.bare), decay=options.ema_decay)
        accelerator.register_for_checkpointing(self.ema, self.rates)
        keep_unwrapped(accelerator, self.bare)

    @staticmethod
    def learning(model: nn.Module) -> list[nn.Parameter]:
        """The parameters that train: all, or those of the adapters."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def update(self, step: int) -> None:
        """After a backward pass: where it completes the step, move the weights, learning rate and moving average.

        Raises DivergenceError, before anything has moved, when the gradient is not finite; in fp16 the loss scaling of
        accelerate leaves such a step out and goes on.
        """
        if self.accelerator.sync_gradients:
            clip = math.inf if self.options.grad_clip is None else self.options.grad_clip
            norm: Any = self.accelerator.clip_grad_norm_(self.bare.parameters(), clip)
            if self.accelerator.scaler is None and not math.isfinite(norm):
                raise DivergenceError(f"the norm of the gradient is {float(norm)} at step {step + 1}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.rates.step()
            self.ema.step(self.learning(self.bare))

    def averaged(self, weights: Sequence[Tensor] | None = None) -> Any:
        """A copy of the model in fp32, in eval mode, with its own dropout and without adapters, which are merged.

        weights: of what trains; None for the EMA weights.
        """
        trained = copy.deepcopy(self.bare)
        with torch.no_grad():
            for parameter, value in zip(self.learning(trained), weights or self.ema.shadow_params, strict=True):
                parameter.copy_(value)
        for ours, own in zip(trained.modules(), self.bare.modules(), strict=True):
            if isinstance(ours, nn.Dropout):
                ours.p = self.dropouts[own]
        merge_adapters(trained)
        return trained.requires_grad_(True).eval()

    def result(self, device: torch.device, weights: Sequence[Tensor] | None = None) -> Any:
        """As `averaged`, in the model's own dtype."""
        return _cast(self.averaged(weights).to(device), self.dtype)


PRECONDITIONED = 512
"""Largest width of which SOAP keeps second moments between channels; beyond it, it is Adam along that dimension."""


def optimizer_of(options: TrainingOptions) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer with its options, as a function of the parameters: of torch, or SOAP (Vyas et al., ICLR 2025)."""
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "soap":
        from pytorch_optimizer import SOAP  # a quarter of a second, which other stages need not wait for

        return functools.partial(SOAP, max_precondition_dim=PRECONDITIONED, **common)
    names = {name.lower(): name for name in vars(torch.optim)}
    momentum = {"momentum": 0.9} if options.optimizer in ("sgd", "rmsprop") else {}
    return functools.partial(getattr(torch.optim, names[options.optimizer]), **common, **momentum)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if next(model.parameters()).dtype == dtype else nn.Module.to(model, dtype)
