"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.corruption import Corruption, Corruptions, corruptions, corruptions_of_each
from gossamer.measure.description import DescriptionLength, description_length
from gossamer.measure.exemplars import (
    Audit,
    Changed,
    Curriculum,
    Pie,
    Vog,
    VogCallback,
    audit,
    changed,
    deciles,
    pie,
    saliency,
    sampling_weights,
    vog,
)
from gossamer.measure.generalisation import Generalisation, generalisation
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of
from gossamer.measure.prequential import Prequential, prequential
from gossamer.measure.robustness import (
    APGD,
    FGSM,
    PGD,
    QUICK,
    STANDARD,
    Attack,
    Normalized,
    Robustness,
    Square,
    Transfer,
    Worst,
    robustness,
)
from gossamer.measure.temperature import Temperature, calibrated

__all__ = [
    "APGD",
    "FGSM",
    "PGD",
    "QUICK",
    "STANDARD",
    "Accuracy",
    "Attack",
    "Audit",
    "Changed",
    "Corruption",
    "Corruptions",
    "Curriculum",
    "DescriptionLength",
    "Generalisation",
    "Ledger",
    "Normalized",
    "Pie",
    "Prequential",
    "Robustness",
    "Square",
    "Temperature",
    "TensorAccount",
    "Timing",
    "Transfer",
    "Vog",
    "VogCallback",
    "Worst",
    "accuracy",
    "audit",
    "calibrated",
    "changed",
    "corruptions",
    "corruptions_of_each",
    "deciles",
    "description_length",
    "generalisation",
    "interleaved",
    "ledger_of",
    "pie",
    "prequential",
    "robustness",
    "saliency",
    "sampling_weights",
    "vog",
]
