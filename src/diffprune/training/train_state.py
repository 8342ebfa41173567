"""What trains: a copy of the model with its optimizer, its learning rates and its moving average."""

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
from diffprune.training.fsdp import exchanged, name_blocks, shard_frozen, whole
from diffprune.training.history import DivergenceError
from diffprune.training.lora import add_adapters, merge_adapters


class TrainState:
    """A copy of a denoiser in fp32, prepared for training on this process's device, or sharded over those of all.

    Raises OptionError where the launcher names layers to shard by that the denoiser does not have.
    """

    def __init__(
        self, denoiser: nn.Module, options: TrainingOptions, accelerator: Accelerator, device: torch.device
    ) -> None:
        self.options, self.accelerator, self.device = options, accelerator, device
        self.dtype = next(denoiser.parameters()).dtype
        self.original, self.sharded = denoiser, bool(accelerator.is_fsdp2)
        start = torch.device("cpu") if self.sharded else device  # shards then go each to its own
        self.bare = _cast(copy.deepcopy(denoiser).to(start), torch.float32).train().requires_grad_(True)
        self._adapt(self.bare)
        self.dropouts: dict[nn.Module, float] = {m: m.p for m in self.bare.modules() if isinstance(m, nn.Dropout)}
        for module in self.bare.modules():
            if isinstance(module, nn.Dropout) and options.dropout is not None:
                module.p = options.dropout
        if self.sharded:
            name_blocks(accelerator, self.bare)
        optimizer = optimizer_of(options)(self.learning(self.bare))
        self.model, self.optimizer = accelerator.prepare(self.bare, optimizer, device_placement=[False, False])
        name = "constant_with_warmup" if options.schedule == "constant" else options.schedule
        self.rates = get_scheduler(
            name, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=options.steps
        )
        self.ema = EMAModel(self.learning(self.bare), decay=options.ema_decay, foreach=True)

    def _adapt(self, model: nn.Module) -> None:
        """Give a model the adapters that are asked for, if any."""
        rank = self.options.lora_rank if isinstance(self.options, FinetuneOptions) else None
        if rank is not None:
            add_adapters(model, rank, self.options.seed)

    @staticmethod
    def learning(model: nn.Module) -> list[nn.Parameter]:
        """The parameters that train: all, or those of the adapters."""
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    def place(self, model: nn.Module) -> nn.Module:
        """Bring a model that only answers to where this one computes."""
        return shard_frozen(self.accelerator, model) if self.sharded else model.to(self.device)

    def update(self, step: int) -> None:
        """After a backward pass: where it completes the step, move the weights, learning rate and moving average.

        Raises DivergenceError, before anything has moved, when the gradient is not finite; in fp16 the loss scaling of
        accelerate leaves such a step out and goes on.
        """
        if self.accelerator.sync_gradients:
            clip = math.inf if self.options.grad_clip is None else self.options.grad_clip
            norm: Any = self.accelerator.clip_grad_norm_(self.bare.parameters(), clip)
            norm = whole(norm, self.device)
            if self.accelerator.scaler is None and not math.isfinite(norm):
                raise DivergenceError(f"the norm of the gradient is {float(norm)} at step {step + 1}", step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.rates.step()
            self.ema.step(self.learning(self.bare))

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """The model in eval mode with its EMA weights: a copy, or, sharded, itself, which then trains on as it was."""
        if not self.sharded:
            yield self.averaged()
            return
        with exchanged(self.bare, self.learning(self.bare), self.ema.shadow_params):
            self.bare.eval()
            try:
                yield self.bare
            finally:
                self.bare.train()

    def averaged(self, weights: Sequence[Tensor] | None = None) -> Any:
        """A copy of the model in fp32, in eval mode, with its own dropout and without adapters, which are merged.

        weights: of what trains; None for the EMA weights. Of a sharded model the copy lies in main memory, and all
        processes have to ask for it.
        """
        if self.sharded:
            trained = _cast(copy.deepcopy(self.original), torch.float32).requires_grad_(True)
            self._adapt(trained)
        else:
            trained = copy.deepcopy(self.bare)
            for ours, own in zip(trained.modules(), self.bare.modules(), strict=True):
                if isinstance(ours, nn.Dropout):
                    ours.p = self.dropouts[own]
        with torch.no_grad():
            for parameter, value in zip(self.learning(trained), weights or self.ema.shadow_params, strict=True):
                parameter.copy_(whole(value, self.device))
        merge_adapters(trained)
        return trained.requires_grad_(True).eval()

    def result(self, device: torch.device, weights: Sequence[Tensor] | None = None) -> Any:
        """As `averaged`, in the model's own dtype."""
        return _cast(self.averaged(weights).to(device), self.dtype)


PRECONDITIONED = 512
"""Largest width of which SOAP keeps second moments between channels; beyond it, it is Adam along that dimension."""

FUSED = ("adam", "adamw")
"""Optimizers of which torch has a step in one pass over the weights, on CPUs, on GPUs, and on shards."""


def optimizer_of(options: TrainingOptions) -> Callable[..., torch.optim.Optimizer]:
    """The optimizer with its options, as a function of the parameters: of torch, or SOAP (Vyas et al., ICLR 2025)."""
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    if options.optimizer == "soap":
        from pytorch_optimizer import SOAP  # a quarter of a second, which other stages need not wait for

        return functools.partial(SOAP, max_precondition_dim=PRECONDITIONED, **common)
    names = {name.lower(): name for name in vars(torch.optim)}
    momentum = {"momentum": 0.9} if options.optimizer in ("sgd", "rmsprop") else {}
    fused = {"fused": True} if options.optimizer in FUSED else {}
    return functools.partial(getattr(torch.optim, names[options.optimizer]), **common, **momentum, **fused)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return model if next(model.parameters()).dtype == dtype else nn.Module.to(model, dtype)
