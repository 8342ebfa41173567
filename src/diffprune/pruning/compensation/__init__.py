"""Compensation: what the removed units did is put into those that stay, by least squares, before any training."""

from diffprune.pruning.compensation.compensate import compensate as compensate
from diffprune.pruning.compensation.layerwise import Compensation as Compensation
