"""The table of commands: what each takes, and which stage it calls. Imports no torch."""

from collections.abc import Mapping

from diffprune import options as sets
from diffprune.cli import calls
from diffprune.cli.command import Argument, Command

MODEL = "pipeline or denoiser folder, hub id, config.json or built-in name"
IMAGES = "folder of images; for set metrics also DATA or statistics (.npz)"
REFERENCE = "images or statistics to compare with; some metrics need none"
DATA = "folder of images, parquet file, dataset id, or digits"

COMMANDS: Mapping[str, Command] = {
    "inspect": Command(
        "show a model's size, cost and prunable units",
        calls.inspect,
        example=("diffprune inspect digits",),
        positionals={"model": MODEL},
        options=(sets.InspectOptions,),
    ),
    "plan": Command(
        "score units and choose which to keep",
        calls.plan,
        example=("diffprune plan digits --data digits --ratio 0.4 --out plan.json",),
        positionals={"model": MODEL},
        options=(sets.PlanOptions,),
        most_used=("ratio", "keep_macs", "criterion", "data", "out"),
        out="optional",
    ),
    "prune": Command(
        "prune a model",
        calls.prune,
        example=(
            "diffprune prune digits --data digits --ratio 0.4 --out pruned",
            "diffprune sample pruned --num 16 --steps 50 --out images-pruned",
        ),
        positionals={"model": MODEL},
        options=(sets.PruneOptions, sets.PlanOptions),
        arguments=(
            Argument("plan", "plan.json to apply (default: make a plan with these options)", "what to remove", "FILE"),
        ),
        most_used=("ratio", "keep_macs", "criterion", "data", "out"),
        out="required",
    ),
    "finetune": Command(
        "recover a pruned model by training",
        calls.finetune,
        example=(
            "diffprune finetune pruned --teacher digits --data digits --steps 300 --no-flip \\",
            "    --out recovered",
        ),
        positionals={"model": MODEL},
        options=(sets.FinetuneOptions,),
        arguments=(
            Argument(
                "teacher",
                "original model to distill from, as MODEL (default: none)",
                "distillation",
                "MODEL",
            ),
        ),
        most_used=("teacher", "data", "steps", "batch_size", "out"),
        out="required",
    ),
    "sample": Command(
        "generate images with a model",
        calls.sample,
        example=("diffprune sample digits --num 64 --steps 50 --out images-original",),
        positionals={"model": MODEL},
        options=(sets.SampleOptions,),
        most_used=("num", "steps", "seed", "batch_size", "out"),
        out="required",
    ),
    "evaluate": Command(
        "compare images with a reference",
        calls.evaluate,
        example=("diffprune evaluate images-pruned digits --metrics frechet_distance",),
        positionals={"images": IMAGES, "reference?": REFERENCE},
        options=(sets.EvaluateOptions,),
        most_used=("metrics", "num", "batch_size", "device", "out"),
        out="optional",
    ),
    "report": Command(
        "make one HTML page of the results in some folders",
        calls.report,
        example=("diffprune report pruned images-pruned --out report.html",),
        positionals={"folders+": "folders that earlier commands wrote"},
        out="required",
        overwrite=False,
    ),
    "run": Command(
        "run all stages of a recipe",
        calls.run,
        example=("diffprune run digits --out runs/digits --set finetune.steps=100 --dry-run",),
        positionals={"recipe": "name of a shipped recipe, or YAML file"},
        arguments=(
            Argument(
                "set", "replace options of the recipe, such as finetune.steps=100", "recipe", "OPTION=VALUE", many=True
            ),
            Argument(
                "compare",
                "criteria to compare instead of the plan's\nscratch: random choice, fresh weights",
                "recipe",
                "NAME",
                many=True,
            ),
            Argument("dry-run", "check the recipe and estimate its times, then stop", "recipe", flag=True),
        ),
        out="required",
        overwrite=False,
    ),
    "demo": Command(
        "prune and recover a small model of handwritten digits, in minutes",
        calls.demo,
        example=("diffprune demo",),
        next_steps=(
            "diffprune prune digits --data digits --keep-macs 0.5 --out pruned",
            "diffprune run demo --compare random diff-pruning --out runs/compared",
            "diffprune prune google/ddpm-cifar10-32 --criterion magnitude --ratio 0.3 --out pruned-cifar10",
        ),
        out="default",
        overwrite=False,
    ),
    "train": Command(
        "train a denoiser from scratch",
        calls.train,
        example=("diffprune train --architecture ddpm-digits --data digits --no-flip --steps 1500 --out trained",),
        positionals={"recipe?": "recipe whose train section has the options"},
        options=(sets.TrainOptions,),
        most_used=("architecture", "data", "steps", "batch_size", "out"),
        out="required",
    ),
    "convert": Command(
        "convert a checkpoint of another system to a diffusers folder",
        calls.convert,
        example=("diffprune convert ddpm model-790000.ckpt --arch ddpm-cifar10 --out models/ddpm-cifar10",),
        positionals={"format": "ddpm, ldm or shapes", "file": "checkpoint: a path, or an http(s) URL with --sha256"},
        options=(sets.ConvertOptions,),
        out="required",
    ),
    "data": Command(
        "convert a published data set to image files",
        calls.data,
        example=("diffprune data cifar10 --archive cifar-10-python.tar.gz --out data/cifar10",),
        positionals={"name": "cifar10, cifar100, celeba, lsun-church, lsun-bedroom or ffhq"},
        options=(sets.DataOptions,),
        arguments=(
            Argument(
                "archive", "file, folder or URL of the archive (default: official download)", "data set", "ARCHIVE"
            ),
        ),
        most_used=("archive", "split", "format", "preset", "out"),
        out="required",
    ),
    "stats": Command(
        "compute the statistics of an image set, a reference for evaluate",
        calls.stats,
        example=("diffprune stats data/cifar10 --metrics fid --out cifar10.npz",),
        positionals={"images": DATA},
        options=(sets.StatsOptions,),
        most_used=("metrics", "num", "batch_size", "device", "out"),
        out="required",
    ),
    "analyze stages": Command(
        "compare scores from different stages of timesteps",
        calls.analyze_stages,
        example=("diffprune analyze stages digits --data digits --num-stages 4 --out stages",),
        positionals={"model": MODEL},
        options=(sets.StagesOptions,),
        most_used=("num_stages", "ratio", "data", "num", "out"),
        out="required",
    ),
    "analyze sensitivity": Command(
        "measure the error of the output per pruned layer",
        calls.analyze_sensitivity,
        example=("diffprune analyze sensitivity digits --data digits --ratios 0.3 0.5 --out sensitivity",),
        positionals={"model": MODEL},
        options=(sets.SensitivityOptions,),
        most_used=("by", "ratios", "criterion", "data", "out"),
        out="required",
    ),
    "analyze plan": Command(
        "draw what a plan keeps, or compare two plans",
        calls.analyze_plan,
        example=(
            "diffprune plan digits --data digits --ratio 0.4 --out plan.json",
            "diffprune analyze plan plan.json --out plan.png",
        ),
        positionals={"plan": "plan.json", "other?": "plan.json of the same model to compare with"},
        out="required",
    ),
    "recipes": Command(
        "list the shipped recipes, print one, or copy one to a file",
        calls.recipes,
        example=("diffprune recipes cifar10 --out my-recipe.yaml",),
        positionals={"name?": "recipe to print or copy (default: list all)"},
        out="optional",
        overwrite=False,
    ),
}
