"""Training sharded by FSDP2, where `accelerate launch --use_fsdp` asks for it: what is served, and what differs."""

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
"""Optimizers that move each weight by itself, so that a shard is all they need."""

CALLED_ALONE = ("CombinedTimestepLabelEmbeddings",)
"""Classes of layers that a model (DiT) also calls while the block that holds them is not gathered."""


def asked_for(device: str) -> bool:
    """Whether several processes were launched to shard a model; a single one on a CPU has nothing to share."""
    return _switched_on("ACCELERATE_USE_FSDP") and process_state(device).use_distributed


def check_sharding(options: TrainingOptions) -> None:
    """Where sharding is asked for, raise OptionError, before any work, that lists what it cannot do."""
    if not asked_for(options.device):
        return
    mistakes = []
    if (version := os.environ.get("FSDP_VERSION", "1")) != "2":
        mistakes.append(f"FSDP version {version} is not served; give accelerate --fsdp_version 2")
    if options.optimizer not in SHARDABLE:
        mistakes.append(
            f"optimizer: {options.optimizer} cannot work on shards of the weights; give --optimizer adamw, or one of "
            + ", ".join(SHARDABLE)
        )
    if options.preview_every:
        mistakes.append("preview_every: one process draws previews and would need the whole model; leave it out")
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", "").upper() == "SIZE_BASED_WRAP":
        mistakes.append("--fsdp_auto_wrap_policy: FSDP2 cannot wrap lists of layers by size; leave it out")
    if _switched_on("FSDP_ACTIVATION_CHECKPOINTING"):
        mistakes.append("--fsdp_activation_checkpointing: give --gradient-checkpointing of diffprune instead")
    if _switched_on("ACCELERATE_USE_PARALLELISM_CONFIG"):
        mistakes.append("accelerate's parallelism_config is not served beside FSDP; leave it out")
    on_cpu = process_state(options.device).device.type == "cpu"
    if on_cpu and torch.accelerator.is_available():
        mistakes.append("device: where there are GPUs, FSDP2 shards over them; leave out cpu")
    if on_cpu and _switched_on("FSDP_OFFLOAD_PARAMS"):
        mistakes.append("--fsdp_offload_params: weights lie in main memory already; leave it out")
    if mistakes:
        raise OptionError("training under FSDP: " + "; ".join(mistakes))


@contextmanager
def accelerated(options: TrainingOptions, folder: Path | None) -> Iterator[Accelerator]:
    """Yield the accelerator of one training; afterwards the accelerator of the caller, if any, works as before.

    folder: where it logs; None for nowhere.
    """
    state = process_state(options.device)
    before, sharded = state.distributed_type, asked_for(options.device)
    if sharded and before == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU  # accelerate leaves FSDP out on CPUs, without a word
    # accelerate has one state per process, with one precision: that of the caller's accelerator is put aside
    states: list[Any] = [AcceleratorState, GradientState]
    of_caller = [kind._shared_state for kind in states]
    for kind in states:
        kind._shared_state = {}
    try:
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            # sharded, each pass gives its gradients away; kept until the last one, they would be whole
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
    """What the launcher asks for, but weights are gathered in the lower precision and gradients summed in fp32.

    Inputs stay as they are, as in a training that is not sharded: timesteps do not fit into bf16. Every process has
    loaded the model, so that none need be sent. Asked for nothing else, a block is gathered at a time, where accelerate
    would gather all of the model.
    """
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    return FullyShardedDataParallelPlugin(
        mixed_precision_policy=policy,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy=os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP"),
    )


def name_blocks(accelerator: Accelerator, model: nn.Module) -> None:
    """Tell accelerate which layers are gathered one at a time, where the user has not named their classes.

    They are those that diffusers does not split over devices, else the elements of the model's lists of blocks.
    Raises OptionError for classes that the model does not have.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is None:
        return
    there = {type(module).__name__ for module in model.modules()}
    named = plugin.transformer_cls_names_to_wrap
    if unknown := sorted(set(named or ()) - there):
        raise OptionError(
            f"--fsdp_transformer_layer_cls_to_wrap: {', '.join(unknown)} is no class of a layer of this "
            f"{type(model).__name__}; leave it out, or give some of {', '.join(sorted(_classes_of_blocks(model)))}"
        )
    undivided = there.intersection(getattr(model, "_no_split_modules", None) or ())
    plugin.transformer_cls_names_to_wrap = named or sorted(
        (undivided or _classes_of_blocks(model)) | there.intersection(CALLED_ALONE)
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
    """Shard a model that only answers, as the one that trains, in its own dtype; no part of it stays gathered."""
    plugin = accelerator.state.fsdp_plugin
    policy = plugin.mixed_precision_policy
    plugin.mixed_precision_policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    try:
        sharded: Any = fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.mixed_precision_policy = policy
    sharded.set_reshard_after_forward(True)
    return cast(nn.Module, sharded)


def whole(value: Tensor, device: torch.device) -> Tensor:
    """A tensor with the parts of all processes, which all have to ask for it; one that is no shard, as it is."""
    return cast(DTensor, value.to(device)).full_tensor() if isinstance(value, DTensor) else value


@contextmanager
def exchanged(model: nn.Module, parameters: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Exchange the shards of a model's parameters with others while it lasts; no copy of them all is made."""

    def exchange() -> None:
        with torch.no_grad():
            for ours, other in zip(parameters, others, strict=True):
                kept = ours.detach().clone()
                ours.copy_(other)
                other.copy_(kept)

    exchange()
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # what stays gathered after a forward pass would be taken for the old weights
        exchange()


def _switched_on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")
