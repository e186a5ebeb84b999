"""What a compressed network costs and what it is worth, measured from the reloaded file."""

from gossamer.measure.accuracy import Accuracy, accuracy
from gossamer.measure.latency import Timing, interleaved
from gossamer.measure.layer_curves import LayerCurve, Sensitivities
from gossamer.measure.ledger import Ledger, TensorAccount, ledger_of
from gossamer.measure.probe import Probe, bits, ranks, sparsities
from gossamer.measure.sensitivity import measure_layers, sensitivity

__all__ = [
    "Accuracy",
    "LayerCurve",
    "Ledger",
    "Probe",
    "Sensitivities",
    "TensorAccount",
    "Timing",
    "accuracy",
    "bits",
    "interleaved",
    "ledger_of",
    "measure_layers",
    "ranks",
    "sensitivity",
    "sparsities",
]
