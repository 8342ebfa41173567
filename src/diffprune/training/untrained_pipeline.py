"""Make the pipeline that training from scratch starts with."""

from typing import Any, cast

import torch
from diffusers import DDPMPipeline, DDPMScheduler

from diffprune.options import TrainOptions
from diffprune.pipelines.architecture_configs import architecture
from diffprune.pruning.surgery import reset_weights


def untrained_pipeline(options: TrainOptions) -> Any:
    """Return a pipeline of the architecture and noise schedule of the options, with weights drawn by the seed."""
    empty: Any = architecture(options.architecture)
    with torch.random.fork_rng():
        denoiser = type(empty).from_config(empty.config)  # with its buffers, such as tables of positions
    reset_weights(denoiser, options.seed)
    scheduler = DDPMScheduler(
        num_train_timesteps=options.num_train_timesteps,
        beta_schedule=options.beta_schedule,
        prediction_type=options.prediction_type,
    )
    return DDPMPipeline(cast(Any, denoiser), scheduler)
