"""Accuracy when inputs may be changed a little: attacks, and what they leave."""

from gossamer.measure.robustness.apgd import APGD
from gossamer.measure.robustness.attack import Attack
from gossamer.measure.robustness.fgsm import FGSM
from gossamer.measure.robustness.measured import QUICK, STANDARD, Robustness, robustness
from gossamer.measure.robustness.normalized import Normalized
from gossamer.measure.robustness.pgd import PGD
from gossamer.measure.robustness.square import Square
from gossamer.measure.robustness.transfer import Transfer
from gossamer.measure.robustness.worst import Worst

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "QUICK",
    "STANDARD",
    "Attack",
    "Normalized",
    "Robustness",
    "Square",
    "Transfer",
    "Worst",
    "robustness",
]
