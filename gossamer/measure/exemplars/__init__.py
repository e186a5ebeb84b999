"""Single examples: which ones training finds hard, compression changes, and a network looks at where.

`vog` (variance of gradients over checkpoints) and its callback, `pie` (exemplars by disagreement of populations, with a
dense control), `changed` (one pair of networks), `audit` (what is both), `saliency` (input gradients), and steering of
training by scores.
"""

from gossamer.measure.exemplars.audit import Audit, audit
from gossamer.measure.exemplars.changed import Change, Changed, changed
from gossamer.measure.exemplars.deciles import Decile, deciles
from gossamer.measure.exemplars.pie import GroupAccuracy, Pie, modal, pie
from gossamer.measure.exemplars.saliency import saliency
from gossamer.measure.exemplars.steering import Curriculum, easiest_first, sampling_weights
from gossamer.measure.exemplars.streaming import VogCallback
from gossamer.measure.exemplars.vog import Vog, vog

__all__ = [
    "Audit",
    "Change",
    "Changed",
    "Curriculum",
    "Decile",
    "GroupAccuracy",
    "Pie",
    "Vog",
    "VogCallback",
    "audit",
    "changed",
    "deciles",
    "easiest_first",
    "modal",
    "pie",
    "saliency",
    "sampling_weights",
    "vog",
]
