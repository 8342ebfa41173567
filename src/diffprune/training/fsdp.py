"""FSDP2: shard a training over ranks where `accelerate launch --use_fsdp` requests it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin, fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from diffprune.errors import OptionError
from diffprune.options import TrainingOptions
from diffprune.runs.distributed import process_state

SHARDABLE = ("adam", "adamax", "adamw", "nadam", "radam", "rmsprop", "sgd")
"""Elementwise optimizers, which need nothing outside their shard."""

CALLED_OUTSIDE_BLOCKS = ("CombinedTimestepLabelEmbeddings",)
"""Layer classes that a model (DiT) also calls outside the block that contains them, while it is not gathered."""


def is_requested(device: str) -> bool:
    """Return whether the launcher requests FSDP; a single CPU process never shards."""
    return _switched_on("ACCELERATE_USE_FSDP") and process_state(device).use_distributed


def check_sharding(options: TrainingOptions) -> None:
    """Raise OptionError before any work where FSDP is requested together with options it does not support."""
    if not is_requested(options.device):
        return
    mistakes = []
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        mistakes.append(f"FSDP version {version} is not supported; give accelerate --fsdp_version 2")
    if options.optimizer not in SHARDABLE:
        mistakes.append(
            f"optimizer: {options.optimizer} does not support sharded weights; give --optimizer adamw, or one of "
            + ", ".join(SHARDABLE)
        )
    if options.preview_every:
        mistakes.append(
            "preview_every: a preview needs the full model on one rank, which FSDP does not keep; leave it out"
        )
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP":
        mistakes.append("--fsdp_auto_wrap_policy: SIZE_BASED_WRAP is not supported by FSDP2; leave it out")
    if _switched_on("FSDP_ACTIVATION_CHECKPOINTING"):
        mistakes.append(
            "--fsdp_activation_checkpointing: not supported; give --gradient-checkpointing of diffprune instead"
        )
    if _switched_on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        mistakes.append("accelerate's parallelism_config is not supported together with FSDP; leave it out")
    on_cpu = process_state(options.device).device.type == "cpu"
    if on_cpu and torch.accelerator.is_available():
        mistakes.append("device: got cpu, but FSDP2 uses the GPUs of this machine; leave it out")
    if on_cpu and _switched_on("FSDP_OFFLOAD_PARAMS"):
        mistakes.append("--fsdp_offload_params: weights are in main memory already; leave it out")
    if mistakes:
        raise OptionError("training under FSDP: " + "; ".join(mistakes))


@contextmanager
def accelerated(options: TrainingOptions, folder: Path | None) -> Iterator[Accelerator]:
    """Yield the accelerator of one training run; afterwards the accelerator of the caller, if any, works as before.

    folder: where trackers log; None for no logs.
    """
    state = process_state(options.device)
    before, sharded = state.distributed_type, is_requested(options.device)
    if sharded and before == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # accelerate ignores FSDP on CPUs silently
    # accelerate has one state per process, with one autocast dtype: save the state of the caller's accelerator
    states: list[Any] = [AcceleratorState, GradientState]
    of_caller = [kind._shared_state for kind in states]
    for kind in states:
        kind._shared_state = {}
    try:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            # sharded: reduce gradients after each pass, since unreduced ones would need the memory of the full model
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=options.accumulation_steps, sync_each_batch=sharded
            ),
            step_scheduler_with_optimizer=False,
            cpu=options.device == "cpu",
            log_with=None if options.tracker == "none" or folder is None else options.tracker,
            project_dir=str(folder) if folder is not None else None,
            fsdp_plugin=_plugin(options.mixed_precision) if sharded else None,
        )
        try:
            yield accelerator
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
    finally:
        for kind, shared in zip(states, of_caller, strict=True):
            kind._shared_state = shared
        state.distributed_type = before


def _plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """Return the launcher's plugin with weights gathered in the autocast dtype and gradients reduced in fp32.

    Inputs are not cast, as without sharding: bf16 cannot represent the timesteps. Every rank has loaded the model, so
    no weights are broadcast. The default policy gathers one block at a time; accelerate's gathers the whole model.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=policy,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy=os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"),
    )


def name_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Set the layer classes that FSDP gathers one at a time, unless the user named them.

    They are the classes that diffusers does not split over devices, else the elements of the model's block lists.
    Raises OptionError for classes that the model does not have.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is None:
        return
    present = {type(module).__name__ for module in model.modules()}
    named = plugin.transformer_cls_names_to_wrap
    if unknown := sorted(set(named or ()) - present):
        raise OptionError(
            f"--fsdp_transformer_layer_cls_to_wrap: {type(model).__name__} has no layer of class "
            f"{', '.join(unknown)}; leave it out, or give some of {', '.join(sorted(_classes_of_blocks(model)))}"
        )
    undivided = present.intersection(getattr(model, "_no_split_modules", None) or ())
    plugin.transformer_cls_names_to_wrap = named or sorted(
        (undivided or _classes_of_blocks(model)) | present.intersection(CALLED_OUTSIDE_BLOCKS)
    )


def _classes_of_blocks(model: nn.Module) -> set[str]:
    def blocks(parts: Iterable[nn.Module]) -> Iterator[nn.Module]:
        for part in parts:
            if isinstance(part, nn.ModuleList):
                yield from blocks(part)
            else:
                yield part

    lists = (child for child in model.children() if isinstance(child, nn.ModuleList))
    return {type(block).__name__ for block in blocks(lists) if list(block.parameters())}


def shard_frozen(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Shard a frozen model like the one that trains, in its own dtype; blocks are resharded after each forward pass."""
    plugin = accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    try:
        sharded: Any = fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.mixed_precision_policy = policy
    sharded.set_reshard_after_forward(True)
    return cast(nn.Module, sharded)


def gathered(value: Tensor, device: torch.device) -> Tensor:
    """Gather a sharded tensor from all ranks; a tensor that is not sharded is returned unchanged.

    A collective: all ranks must call it.
    """
    return cast(DTensor, value.to(device)).full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def swapped(model: nn.Module, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Swap the shards of a model's parameters with others inside the context, one at a time to save memory."""

    def swap() -> None:
        with torch.no_grad():
            for parameter, other in zip(parameters, others, strict=True):
                previous = parameter.detach().clone()
                parameter.copy_(other)
                other.copy_(previous)

    swap()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # gathered weights of the last forward pass would be reused after the swap
        swap()


def _switched_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
