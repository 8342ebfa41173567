"""The zoo under FSDP2: a sharded model has the outputs and gradients of the unsharded one.

Started as a script it is one of two processes: a line for each class says what came of it.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.tiny_configs import CONFIGS

NOT_PASSED = {
    "AnyFlowFARTransformer3DModel", "Kandinsky6SRTransformer3DModel", "MiniMaxMusic3RVQDepthDecoder", "T5FilmDecoder",
    "UVit2DModel",
}  # fmt: skip
"""Their attention has no backward pass on a CPU, or they give something else than the others."""


@pytest.mark.slow
def test_every_class_computes_in_shards_as_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parents[2]), *sys.path]))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    ended = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    told = dict(line.split() for line in ended.stdout.splitlines() if line.startswith(tuple(CONFIGS)))
    assert told.keys() == CONFIGS.keys() - NOT_PASSED
    assert {name: worst for name, worst in told.items() if not float(worst) < 1e-5} == {}


def passed(model: nn.Module) -> Tensor:
    from tests.zoo.zoo import random_inputs

    output: Any = model(**random_inputs(model), return_dict=False)[0]
    return output if isinstance(output, Tensor) else output[0]


def difference(name: str, accelerator: Any) -> float:
    """The largest, over the largest value, of outputs of a student and a teacher and of all gradients together."""
    from diffprune.training.fsdp import gathered, name_blocks, shard_frozen
    from tests.zoo.zoo import tiny_model

    plain, model = tiny_model(name), tiny_model(name)
    name_blocks(accelerator, model)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), device_placement=[False, False])
    outputs = [passed(each) for each in (plain, model)]
    for output in outputs:
        output.square().mean().backward()
    with torch.no_grad():
        outputs.append(passed(shard_frozen(accelerator, tiny_model(name).requires_grad_(False))))
    gradients = [
        {n: gathered(p.grad, torch.device("cpu")) for n, p in each.named_parameters() if p.grad is not None}
        for each in (plain, model)
    ]
    size = sum(float(value.square().sum()) for value in gradients[0].values()) ** 0.5
    apart = sum(float((gradients[1][n] - value).square().sum()) for n, value in gradients[0].items()) ** 0.5
    answers = max(float((outputs[0] - other).abs().max() / outputs[0].abs().max()) for other in outputs[1:])
    return max(apart / size, answers)


def main() -> None:
    import warnings

    from diffprune.options import FinetuneOptions
    from diffprune.training.fsdp import accelerated
    from tests.zoo.zoo import small_inputs

    warnings.simplefilter("ignore")
    small_inputs()
    options = FinetuneOptions(optimizer="adamw", device="cpu", tracker="none", mixed_precision="no")
    for name in sorted(CONFIGS.keys() - NOT_PASSED):
        with accelerated(options, None) as accelerator:
            worst = difference(name, accelerator)
            if accelerator.is_main_process:
                print(name, worst, flush=True)


if __name__ == "__main__":
    main()
