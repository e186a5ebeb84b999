"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
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
from gossamer.measure.description import DescriptionLength, description_length
from gossamer.measure.generalisation import Generalisation, generalisation
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of
from gossamer.measure.prequential import Prequential, prequential
from gossamer.measure.temperature import Temperature, calibrated

__all__ = [
    "Accuracy",
    "Audit",
    "Changed",
    "Curriculum",
    "DescriptionLength",
    "Generalisation",
    "Ledger",
    "Pie",
    "Prequential",
    "Temperature",
    "TensorAccount",
    "Timing",
    "Vog",
    "VogCallback",
    "accuracy",
    "audit",
    "calibrated",
    "changed",
    "deciles",
    "description_length",
    "generalisation",
    "interleaved",
    "ledger_of",
    "pie",
    "prequential",
    "saliency",
    "sampling_weights",
    "vog",
]
