"""Compensation: fit the kept weights by least squares, so that outputs are close to the outputs before pruning."""

from diffprune.pruning.compensation.compensate import compensate as compensate
from diffprune.pruning.compensation.layerwise import Compensation as Compensation
