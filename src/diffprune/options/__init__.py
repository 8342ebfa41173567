"""Every stage's options, once: the Python API, the command line, recipes and `run.json` derive from these.

A field's description is its help text; units and ranges stand in it. Nothing here imports torch.
"""

from diffprune.options.analysis import SensitivityOptions as SensitivityOptions
from diffprune.options.analysis import StagesOptions as StagesOptions
from diffprune.options.base import ComputeOptions as ComputeOptions
from diffprune.options.base import Options as Options
from diffprune.options.base import explain as explain
from diffprune.options.base import parse_options as parse_options
from diffprune.options.budget import BudgetOptions as BudgetOptions
from diffprune.options.budget import Kind as Kind
from diffprune.options.conversion import ConvertOptions as ConvertOptions
from diffprune.options.data import DataOptions as DataOptions
from diffprune.options.evaluation import LONE_METRICS as LONE_METRICS
from diffprune.options.evaluation import MOMENT_METRICS as MOMENT_METRICS
from diffprune.options.evaluation import PAIRED_METRICS as PAIRED_METRICS
from diffprune.options.evaluation import EvaluateOptions as EvaluateOptions
from diffprune.options.evaluation import InceptionOptions as InceptionOptions
from diffprune.options.evaluation import StatsOptions as StatsOptions
from diffprune.options.images import ImageOptions as ImageOptions
from diffprune.options.images import PreparationOptions as PreparationOptions
from diffprune.options.prompting import GenerationOptions as GenerationOptions
from diffprune.options.prompting import PromptOptions as PromptOptions
from diffprune.options.pruning import OF_CALIBRATION as OF_CALIBRATION
from diffprune.options.pruning import OWN_OF_DIFF_PRUNING as OWN_OF_DIFF_PRUNING
from diffprune.options.pruning import UNCALIBRATED_CRITERIA as UNCALIBRATED_CRITERIA
from diffprune.options.pruning import Criterion as Criterion
from diffprune.options.pruning import InspectOptions as InspectOptions
from diffprune.options.pruning import PlanOptions as PlanOptions
from diffprune.options.pruning import PruneOptions as PruneOptions
from diffprune.options.sampling import Grid as Grid
from diffprune.options.sampling import SampleOptions as SampleOptions
from diffprune.options.sampling import class_list as class_list
from diffprune.options.training import ClassifierOptions as ClassifierOptions
from diffprune.options.training import FinetuneOptions as FinetuneOptions
from diffprune.options.training import TrainingOptions as TrainingOptions
from diffprune.options.training import TrainOptions as TrainOptions
