"""Value quantization: fewer bits per value."""

from gossamer.methods.quantize.awq import AWQ
from gossamer.methods.quantize.cast import Cast
from gossamer.methods.quantize.fold import FoldBatchNorm
from gossamer.methods.quantize.gptq import GPTQ
from gossamer.methods.quantize.half_quadratic import HQQ
from gossamer.methods.quantize.learned_rate import LearnedRate
from gossamer.methods.quantize.lsq import LearnedStep
from gossamer.methods.quantize.mixed import MixedBits
from gossamer.methods.quantize.normal import NormalFloat
from gossamer.methods.quantize.power import PowerOfTwo
from gossamer.methods.quantize.rate_distortion import RateDistortion
from gossamer.methods.quantize.rotate import Rotate
from gossamer.methods.quantize.rtn import RoundToNearest
from gossamer.methods.quantize.smooth import SmoothQuant
from gossamer.methods.quantize.ternary import Ternary
from gossamer.methods.quantize.vector_rate_distortion import VectorRateDistortion

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "Cast",
    "FoldBatchNorm",
    "LearnedRate",
    "LearnedStep",
    "MixedBits",
    "NormalFloat",
    "PowerOfTwo",
    "RateDistortion",
    "Rotate",
    "RoundToNearest",
    "SmoothQuant",
    "Ternary",
    "VectorRateDistortion",
]
