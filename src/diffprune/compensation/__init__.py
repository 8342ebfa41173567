"""Compensation: what the removed units did is put into those that stay, by least squares, before any training."""

from diffprune.compensation.compensate import compensate as compensate
from diffprune.compensation.fitting import Compensation as Compensation
