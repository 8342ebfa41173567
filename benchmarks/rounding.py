"""What widths that the device runs well are worth: a forward pass at one MACs budget, with and without `round_to`.

    python benchmarks/rounding.py --out benchmarks/results/rounding

Both by magnitude, in turn, in eval mode without gradients. Channels that pass norm groups, as nearly all of a UNet do,
are a multiple of their number anyway; neurons of transformers may come out at any number.
"""

import argparse
from functools import partial

import diffprune
from rounds import alternate, arguments, denoiser_named, faster, medians, record
from share import seconds_of_pass

MODELS = ("ddpm-cifar10", "dit-s-2")
ASKED = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--keep-macs", type=float, default=0.56, help="share that stays at most, in both ways")
    parser.add_argument("--round-to", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--images", type=int, default=64, help="of each model, passed in a round")
    a = arguments(parser, {"images": 16})
    found, rows, widths = {}, [], {}
    for name in a.models:
        dense, pair = denoiser_named(name), {}
        for kind, asked in {"rounded": a.round_to, "ragged": None}.items():
            plan = diffprune.plan(dense, criterion="magnitude", keep_macs=a.keep_macs, round_to=asked)
            pair[kind] = diffprune.prune(dense, plan).eval()
            widths[f"{name}, {kind}"] = {
                "round_to": plan.options["round_to"], "macs_share": plan.after.macs / plan.before.macs,
                "widths": sorted({len(g.kept) for g in plan.groups.values() if g.kind in ("channels", "neurons")}),
            }  # fmt: skip
        for size in a.batch_sizes:
            ways = {f"{name}, {kind}, batch size {size}": denoiser for kind, denoiser in pair.items()}
            num = max(1, a.images // size)
            measures = {way: partial(seconds_of_pass, denoiser, size, num) for way, denoiser in ways.items()}
            found |= alternate(measures, a.rounds)
            ours, baseline = (medians(found)[way] for way in ways)
            row = f"rounded widths at {a.keep_macs:g} of the MACs, {name}, batch size {size}"
            rows.append(faster(row, ours, baseline, ASKED, "passes/s", 1.0))
    record("rounding", a, found, rows, plans=widths)


if __name__ == "__main__":
    main()
