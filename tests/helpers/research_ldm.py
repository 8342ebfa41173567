"""The networks of latent diffusion, written from the papers with the names of its checkpoints.

Denoiser: Dhariwal and Nichol 2021 (residual blocks, attention) and Rombach et al. 2022 (cross-attention). First stage:
the convolutional autoencoder of Esser et al. 2021 with its codebook. Written for the tests of conversion: they share
no code and no key map with the package.
"""

import math

import torch
from torch import Tensor, nn

from tests.helpers.research_ddpm import Attention as PixelAttention
from tests.helpers.research_ddpm import Down as PixelDown
from tests.helpers.research_ddpm import Up, swish


def waves(t: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, of frequencies from 1 down to, but without, 1/10000."""
    half = dim // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000.0) * torch.arange(half).float() / half)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=eps)


class ResBlock(nn.Module):
    def __init__(self, before: int, after: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, after))
        self.out_layers = nn.Sequential(norm(after), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(after, after, 3, padding=1))
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Self-attention over positions; the joint projection holds q, k, v of the first head, then of the next."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        flat = x.flatten(2)
        joint = self.qkv(self.norm(flat))
        heads = []
        for part in joint.split(3 * self.head_dim, dim=1):
            q, k, v = part.split(self.head_dim, dim=1)
            weights = torch.softmax(torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(self.head_dim), dim=2)
            heads.append(torch.einsum("bqk,bck->bcq", weights, v))
        return x + self.proj_out(torch.cat(heads, dim=1)).reshape(x.shape)


class CrossAttention(nn.Module):
    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context, dim, bias=False)
        self.to_v = nn.Linear(context, dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        found = []
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        for q, k, v in zip(*(p.chunk(self.heads, dim=-1) for p in projected), strict=True):
            weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)
            found.append(weights @ v)
        return self.to_out(torch.cat(found, dim=-1))


class Gated(nn.Module):
    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)


class Block(nn.Module):
    def __init__(self, dim: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(dim, dim, heads), CrossAttention(dim, context, heads)
        self.ff = nn.Module()
        self.ff.net = nn.Sequential(Gated(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = norm(channels, 1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([Block(channels, context, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return self.op(x)


class Upsample(Up):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return super().forward(x)


class Stem(nn.Conv2d):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None) -> Tensor:
        return super().forward(x)


class Denoiser(nn.Module):
    """ch: base width; mult: of each level; factors: downsamplings at which attention is computed.

    context: width of the condition; None for attention to the image alone, in heads of `head_dim`.
    """

    def __init__(
        self,
        *,
        ch: int,
        mult: tuple[int, ...],
        factors: tuple[int, ...],
        context: int | None,
        head_dim: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.ch = ch
        emb = 4 * ch
        self.time_embed = nn.Sequential(nn.Linear(ch, emb), nn.SiLU(), nn.Linear(emb, emb))

        def attention(width: int) -> nn.Module:
            return AttentionBlock(width, head_dim) if context is None else SpatialTransformer(width, context, heads)

        stages, kept, here, factor = [[Stem(3, ch, 3, padding=1)]], [ch], ch, 1
        for level, m in enumerate(mult):
            for _ in range(2):
                stages.append([ResBlock(here, m * ch, emb)])
                here = m * ch
                if factor in factors:
                    stages[-1].append(attention(here))
                kept.append(here)
            if level < len(mult) - 1:
                stages.append([Downsample(here)])
                kept.append(here)
                factor *= 2
        self.input_blocks = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.middle_block = nn.ModuleList([ResBlock(here, here, emb), attention(here), ResBlock(here, here, emb)])
        stages = []
        for level, m in reversed(list(enumerate(mult))):
            for i in range(3):
                stages.append([ResBlock(here + kept.pop(), m * ch, emb)])
                here = m * ch
                if factor in factors:
                    stages[-1].append(attention(here))
                if level > 0 and i == 2:
                    stages[-1].append(Upsample(here))
                    factor //= 2
        self.output_blocks = nn.ModuleList(nn.ModuleList(stage) for stage in stages)
        self.out = nn.Sequential(norm(here), nn.SiLU(), nn.Conv2d(here, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        emb = self.time_embed(waves(t, self.ch))
        kept, h = [], x
        for stage in self.input_blocks:
            for layer in stage:
                h = layer(h, emb, context)
            kept.append(h)
        for layer in self.middle_block:
            h = layer(h, emb, context)
        for stage in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for layer in stage:
                h = layer(h, emb, context)
        return self.out(h)


class PixelResnet(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(before, 1e-6), nn.Conv2d(before, after, 3, padding=1)
        self.norm2, self.conv2 = norm(after, 1e-6), nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.nin_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Coder(nn.Module):
    """The encoder (`up` False) or the decoder (`up` True); `widths` from fine to coarse."""

    def __init__(self, widths: list[int], before: int, after: int, *, up: bool, blocks: int) -> None:
        super().__init__()
        order = list(enumerate(widths))
        here = widths[-1] if up else widths[0]
        self.conv_in = nn.Conv2d(before, here, 3, padding=1)
        stages: dict[int, nn.Module] = {}
        if up:
            self.mid = self._middle(here)
        for level, width in reversed(order) if up else order:
            stage = stages[level] = nn.Module()
            stage.block = nn.ModuleList(PixelResnet(here if i == 0 else width, width) for i in range(blocks))
            here = width
            if up and level > 0:
                stage.upsample = Up(here)
            if not up and level < len(widths) - 1:
                stage.downsample = PixelDown(here)
        setattr(self, "up" if up else "down", nn.ModuleList(stages[level] for level, _ in order))
        if not up:
            self.mid = self._middle(here)
        self.norm_out, self.conv_out = norm(here, 1e-6), nn.Conv2d(here, after, 3, padding=1)

    @staticmethod
    def _middle(width: int) -> nn.Module:
        middle = nn.Module()
        middle.block_1, middle.attn_1 = PixelResnet(width, width), PixelAttention(width)
        middle.block_2 = PixelResnet(width, width)
        return middle

    def forward(self, x: Tensor) -> Tensor:
        up = hasattr(self, "up")
        h = self.conv_in(x)
        h = self._through_middle(h) if up else h
        for stage in reversed(self.up) if up else self.down:
            for block in stage.block:
                h = block(h)
            for resample in ("upsample", "downsample"):
                h = getattr(stage, resample)(h) if hasattr(stage, resample) else h
        h = h if up else self._through_middle(h)
        return self.conv_out(swish(self.norm_out(h)))

    def _through_middle(self, h: Tensor) -> Tensor:
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))


class FirstStage(nn.Module):
    def __init__(self, *, widths: list[int], codes: int) -> None:
        super().__init__()
        self.encoder = Coder(widths, 3, 3, up=False, blocks=2)
        self.decoder = Coder(widths, 3, 3, up=True, blocks=3)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, 3)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def encode(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Each position's vector is replaced by the nearest of the codebook."""
        codes = self.quantize.embedding.weight
        nearest = torch.cdist(latents.permute(0, 2, 3, 1).flatten(0, 2), codes).argmin(dim=1)
        chosen = codes[nearest].reshape(*latents.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(chosen))


class LatentDiffusionNetwork(nn.Module):
    """All that a checkpoint holds: `model.diffusion_model`, `first_stage_model`, and for classes `cond_stage_model`."""

    def __init__(self, *, classes: int | None, **changes: object) -> None:
        super().__init__()
        self.model = nn.Module()
        context = None if classes is None else 24
        self.model.diffusion_model = Denoiser(
            **{"ch": 32, "mult": (1, 2), "factors": (2,), "context": context, "head_dim": 16, "heads": 2, **changes}
        )
        self.first_stage_model = FirstStage(widths=[32, 64], codes=12)
        if classes is not None:
            self.cond_stage_model = nn.Module()
            self.cond_stage_model.embedding = nn.Embedding(classes, 24)
