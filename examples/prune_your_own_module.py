# %% [markdown]
# # Bring your own nn.Module
#
# After this page you have pruned a denoiser that is no diffusers class, and checked that its outputs are close.
# The script runs in seconds: `python examples/prune_your_own_module.py`.

# %%
import torch
from torch import Tensor, nn

import diffprune

# %% [markdown]
# ## The model
#
# A small transformer that predicts noise. It reads its widths from its layers, so they may shrink.


# %%
class Block(nn.Module):
    """Attention and a gated feed-forward, each with a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.merge = nn.Linear(width, width)
        self.expand, self.reduce = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for tokens x (batch, tokens, width)."""
        y = self.norm_1(x)
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.merge(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        value, gate = self.expand(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.reduce(value * nn.functional.gelu(gate))


class Denoiser(nn.Module):
    """A transformer over tokens, conditioned on the timestep."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted noise for tokens x (batch, tokens, width) at timesteps t (batch,)."""
        x = x + self.time(t[:, None, None].float() / 1000)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


# %% [markdown]
# ## Register its layers
#
# diffprune finds common layer names itself. These names are unusual, so they are registered. The gated feed-forward
# needs nothing more: its first layer is twice as wide as its last, so its rows are values followed by gates.

# %%
diffprune.register_family(
    Denoiser,
    example_inputs=lambda model, batch, device: {
        "x": torch.zeros(batch, 16, model.out.in_features, device=device),
        "t": torch.zeros(batch, dtype=torch.long, device=device),
    },
    attentions=(diffprune.AttentionLayout(("query",), ("key",), ("value",), outputs=("merge",)),),
    feed_forwards=(diffprune.FeedForwardLayout(("expand",), "reduce"),),
)

# %% [markdown]
# ## Look at the groups, then prune

# %%
torch.manual_seed(0)
model = Denoiser()
for group in diffprune.find_groups(model)[:2]:
    print(group.name, group.kind, group.num_units)
plan = diffprune.plan(model, criterion="magnitude", ratio=0.25)
small = diffprune.prune(model, plan)
print(f"{plan.before.params:,} -> {plan.after.params:,} parameters")

# %% [markdown]
# ## Check the output
#
# A bare module has no noise schedule, so it is not compensated. Train it on with your own loop, and save it as usual.

# %%
x, t = torch.randn(8, 16, 32), torch.randint(0, 1000, (8,))
with torch.no_grad():
    change = (small(x, t) - model(x, t)).square().mean() / model(x, t).square().mean()
print(f"relative squared change of the output: {change:.3f}")
