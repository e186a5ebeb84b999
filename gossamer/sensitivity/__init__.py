"""How much worse a network becomes when one layer alone is compressed, and recipes made of that."""

from gossamer.sensitivity.layer_curves import LayerCurve, Sensitivities
from gossamer.sensitivity.measuring import measure_layers, sensitivity
from gossamer.sensitivity.probe import Probe, bits, ranks, sparsities

__all__ = [
    "LayerCurve",
    "Probe",
    "Sensitivities",
    "bits",
    "measure_layers",
    "ranks",
    "sensitivity",
    "sparsities",
]
