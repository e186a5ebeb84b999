"""Between `torch.nn` modules and encodings: which tensors there are, attaching trees to them, making them smaller."""

from gossamer.network.attach import Attached, attach, attached, harvest
from gossamer.network.inspect import specs, tensors
from gossamer.network.rebuild import materialise

__all__ = ["Attached", "attach", "attached", "harvest", "materialise", "specs", "tensors"]
