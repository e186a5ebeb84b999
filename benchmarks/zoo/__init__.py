"""Real networks with real data, for the benchmark of all methods."""

from benchmarks.zoo.place import Zoo
from benchmarks.zoo.subject import Metric, Subject

__all__ = ["Metric", "Subject", "Zoo"]
