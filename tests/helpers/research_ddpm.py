"""The network of the DDPM research code, written from Ho et al. 2020 (appendix B) with the names of its checkpoints.

Written for the tests of conversion, from the architecture alone: it shares no code and no key map with the package.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Sines, then cosines, of geometrically spaced frequencies from 1 to 1/10000 inclusive."""
    half = dim // 2
    angles = t.float()[:, None] * torch.exp(torch.arange(half).float() * (-math.log(10000.0) / (half - 1)))[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Resnet(nn.Module):
    def __init__(self, before: int, after: int, temb: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.temb_proj = nn.Linear(temb, after)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = h + self.temb_proj(swish(temb))[:, :, None, None]
        h = self.conv2(swish(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(x.shape[1]), dim=2)
        return x + self.proj_out(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape))


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class ResearchUNet(nn.Module):
    """ch: base width; mult: width of each level over ch; resolutions: sides at which attention is computed.

    groups: of each norm, 32 in every published network.
    """

    def __init__(
        self,
        *,
        ch: int,
        mult: tuple[int, ...],
        resolutions: tuple[int, ...],
        size: int,
        blocks: int = 2,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.ch, self.blocks = ch, blocks
        temb = 4 * ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, temb), nn.Linear(temb, temb)])
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        skips, here = [ch], ch
        self.down = nn.ModuleList()
        for level, factor in enumerate(mult):
            stage = nn.Module()
            stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks):
                stage.block.append(Resnet(here, ch * factor, temb, groups))
                here = ch * factor
                if size in resolutions:
                    stage.attn.append(Attention(here, groups))
                skips.append(here)
            if level < len(mult) - 1:
                stage.downsample = Down(here)
                skips.append(here)
                size //= 2
            self.down.append(stage)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = (
            Resnet(here, here, temb, groups),
            Attention(here, groups),
            Resnet(here, here, temb, groups),
        )
        ups = []
        for level, factor in reversed(list(enumerate(mult))):
            stage = nn.Module()
            stage.block, stage.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(blocks + 1):
                stage.block.append(Resnet(here + skips.pop(), ch * factor, temb, groups))
                here = ch * factor
                if size in resolutions:
                    stage.attn.append(Attention(here, groups))
            if level > 0:
                stage.upsample = Up(here)
                size *= 2
            ups.append(stage)
        self.up = nn.ModuleList(reversed(ups))
        self.norm_out = nn.GroupNorm(groups, here, eps=1e-6)
        self.conv_out = nn.Conv2d(here, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        first, second = self.temb.dense
        temb = second(swish(first(sinusoids(t, self.ch))))
        kept = [self.conv_in(x)]
        for stage in self.down:
            for i, block in enumerate(stage.block):
                h = block(kept[-1], temb)
                kept.append(stage.attn[i](h) if len(stage.attn) else h)
            if hasattr(stage, "downsample"):
                kept.append(stage.downsample(kept[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], temb)), temb)
        for stage in reversed(self.up):
            for i, block in enumerate(stage.block):
                h = block(torch.cat([h, kept.pop()], dim=1), temb)
                h = stage.attn[i](h) if len(stage.attn) else h
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(swish(self.norm_out(h)))
