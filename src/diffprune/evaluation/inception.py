"""The Inception network of FID, inception score, KID, precision and recall, and the three layers they use.

The architecture is torch-fidelity's copy of the TensorFlow graph `inception-2015-12-05` (Szegedy et al. 2016; used
for IS by Salimans et al. 2016, for FID by Heusel et al. 2017).
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

from diffprune.evaluation.network_weights import explain_mismatch, fetch_weights, hash_of_weights, read_weights
from diffprune.evaluation.protocol import Protocol

NAME = "inception-v3-2015-12-05"
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
REMEDY = "download the file elsewhere and set --inception-weights FILE"

LAYERS = {"pool": 2048, "spatial": 2023, "logits": 1008}
"""Layer -> features per image: last pooling, 7 channels at 17x17 (sFID), logits without bias."""

_TRUNK = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a",
    "Mixed_7b", "Mixed_7c", "AvgPool",
)  # fmt: skip
_SPATIAL_BLOCK, _SPATIAL_CHANNELS = "Mixed_6d", 7


@dataclass(frozen=True)
class Inception:
    """The network in eval mode, on its device, and the hash of its weights."""

    network: nn.Module
    weights: str

    def protocol(self, resize: str, images: str) -> Protocol:
        """Return the protocol of features of this network. resize, images: see `Protocol`."""
        return Protocol(network=NAME, weights=self.weights, resize=resize, images=images)


def load_inception(path: Path | None, device: torch.device) -> Inception:
    """Load the network with the weights of a file; None downloads the published weights and checks their hash.

    path: state dict with the names of torch-fidelity, which pytorch-fid shares. Raises ModelError.
    """
    path = path or fetch_weights(URL, SHA256, remedy=REMEDY)
    network = _build_network(read_weights(path), str(path))
    weights = hash_of_weights(network.state_dict())
    return Inception(_fused(network.to(device)), weights)


@torch.no_grad()
def embed(inception: Inception, inputs: Tensor) -> dict[str, Tensor]:
    """Return the features of each layer, float32 (N, `LAYERS[layer]`), of inputs (N, 3, 299, 299).

    inputs: images resized as in `inception_inputs`. `spatial` is the first 7 channels of the graph's mixed_6/conv
    (sFID: Nash et al. 2021; layer and channels as in the evaluation of Dhariwal and Nichol 2021).
    """
    network = inception.network
    features = {}
    with _exact_convolutions():
        x = inputs
        for name in _TRUNK:
            block = network.get_submodule(name)
            if name == _SPATIAL_BLOCK:
                features["spatial"] = block.get_submodule("branch1x1")(x)[:, :_SPATIAL_CHANNELS].flatten(1)
            x = block(x)
        features["pool"] = x.flatten(1)
        features["logits"] = features["pool"] @ network.get_parameter("fc.weight").T
    return features


def _fused(network: nn.Module) -> nn.Module:
    """Fuse batch norms into convolutions, and use channels-last memory on CPUs; equal up to rounding, and faster."""
    for block in network.modules():
        if isinstance(block, BasicConv2d):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    on_cpu = next(network.parameters()).device.type == "cpu"
    return network.to(memory_format=torch.channels_last) if on_cpu else network


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Run float32 convolutions in float32 on every GPU: TensorFloat-32 would make the metrics depend on the GPU."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def _build_network(state: Mapping[str, Tensor], source: str) -> nn.Module:
    """Build the architecture with these weights.

    Its constructor unpickles a file without restriction, so it reads a file that is written here from tensors.
    """
    file = io.BytesIO()
    torch.save(dict(state), file)
    file.seek(0)
    with torch.random.fork_rng(devices=[]), explain_mismatch(source, f"the weights of {NAME}"):
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    return network
