"""Option sets of all commands: the Python API, the command line, recipes and `run.json` derive from them.

A field's description is its help text; units and ranges stand in it. Nothing here imports torch.
"""

from diffprune.options.analyze_options import SensitivityOptions as SensitivityOptions
from diffprune.options.analyze_options import StagesOptions as StagesOptions
from diffprune.options.budget_options import BudgetOptions as BudgetOptions
from diffprune.options.budget_options import Kind as Kind
from diffprune.options.convert_options import ConvertOptions as ConvertOptions
from diffprune.options.data_options import DataOptions as DataOptions
from diffprune.options.evaluate_options import LONE_METRICS as LONE_METRICS
from diffprune.options.evaluate_options import MOMENT_METRICS as MOMENT_METRICS
from diffprune.options.evaluate_options import PAIRED_METRICS as PAIRED_METRICS
from diffprune.options.evaluate_options import EvaluateOptions as EvaluateOptions
from diffprune.options.evaluate_options import InceptionOptions as InceptionOptions
from diffprune.options.evaluate_options import StatsOptions as StatsOptions
from diffprune.options.image_options import ImageOptions as ImageOptions
from diffprune.options.image_options import PreparationOptions as PreparationOptions
from diffprune.options.option_set import ComputeOptions as ComputeOptions
from diffprune.options.option_set import Options as Options
from diffprune.options.option_set import explain as explain
from diffprune.options.option_set import parse_options as parse_options
from diffprune.options.plan_options import InspectOptions as InspectOptions
from diffprune.options.plan_options import PlanOptions as PlanOptions
from diffprune.options.prompt_options import GenerationOptions as GenerationOptions
from diffprune.options.prompt_options import PromptOptions as PromptOptions
from diffprune.options.prune_options import PruneOptions as PruneOptions
from diffprune.options.run_options import RunOptions as RunOptions
from diffprune.options.sample_options import Grid as Grid
from diffprune.options.sample_options import SampleOptions as SampleOptions
from diffprune.options.sample_options import class_list as class_list
from diffprune.options.scoring_options import DIFF_PRUNING_OPTIONS as DIFF_PRUNING_OPTIONS
from diffprune.options.scoring_options import UNCALIBRATED_CRITERIA as UNCALIBRATED_CRITERIA
from diffprune.options.scoring_options import CalibrationOptions as CalibrationOptions
from diffprune.options.scoring_options import Criterion as Criterion
from diffprune.options.scoring_options import ScoringOptions as ScoringOptions
from diffprune.options.training_options import ClassifierOptions as ClassifierOptions
from diffprune.options.training_options import FinetuneOptions as FinetuneOptions
from diffprune.options.training_options import TrainingOptions as TrainingOptions
from diffprune.options.training_options import TrainOptions as TrainOptions
