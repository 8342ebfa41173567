"""Speed of rounded widths: a forward pass at the same MACs budget, with and without `round_to`.

    python benchmarks/rounding.py --out benchmarks/results/rounding

Both models are pruned by magnitude and run in turn, in eval mode without gradients. Most channels of a UNet pass norm
groups, so their widths are multiples of the number of groups anyway; neurons of transformers can have any width.
"""

import argparse
from functools import partial

import diffprune
from rounds import alternate, arguments, denoiser_named, faster, medians, record
from share import seconds_of_pass

MODELS = ("ddpm-cifar10", "dit-s-2")
TARGET = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--keep-macs", type=float, default=0.56, help="maximum share of MACs kept, in both ways")
    parser.add_argument("--round-to", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--images", type=int, default=64, help="images per model and round")
    a = arguments(parser, {"images": 16})
    found, rows, widths = {}, [], {}
    for name in a.models:
        dense, pair = denoiser_named(name), {}
        for kind, round_to in {"rounded": a.round_to, "ragged": None}.items():
            plan = diffprune.plan(dense, criterion="magnitude", keep_macs=a.keep_macs, round_to=round_to)
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
            rows.append(faster(row, ours, baseline, TARGET, "passes/s", 1.0))
    record("rounding", a, found, rows, plans=widths)


if __name__ == "__main__":
    main()
