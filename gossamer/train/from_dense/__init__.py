"""Methods of which some steps are dense: weights become sparse while, or because, they train."""

from gossamer.train.from_dense.base import (
    DenseMethod,
    FromDense,
    Relaxation,
    harvest,
    live_masks,
    penalty,
    prepare,
    relaxed,
)
from gossamer.train.from_dense.feedback import Feedback, HardThresholding
from gossamer.train.from_dense.hard_concrete import HardConcrete
from gossamer.train.from_dense.hydra import Hydra
from gossamer.train.from_dense.penalties import GroupLasso, Hoyer
from gossamer.train.from_dense.phases import ACDC, DSD, Phase, Phases
from gossamer.train.from_dense.rewind import IterativePruning, LotteryTicket
from gossamer.train.from_dense.soft_threshold import SoftThreshold
from gossamer.train.from_dense.variational import VariationalDropout

__all__ = [
    "ACDC",
    "DSD",
    "DenseMethod",
    "Feedback",
    "FromDense",
    "GroupLasso",
    "HardConcrete",
    "HardThresholding",
    "Hoyer",
    "Hydra",
    "IterativePruning",
    "LotteryTicket",
    "Phase",
    "Phases",
    "Relaxation",
    "SoftThreshold",
    "VariationalDropout",
    "harvest",
    "live_masks",
    "penalty",
    "prepare",
    "relaxed",
]
