"""What a file takes beside what one method makes: for methods whose budget is the whole file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from gossamer.drive.source import Source
from gossamer.encoding.node import Encoding
from gossamer.encoding.spec import TensorSpec
from gossamer.methods.base import FileFrame, Method, Site
from gossamer.store.layout import POOLED_BELOW
from gossamer.store.pieces import code_tensor
from gossamer.store.writer import container_bytes

__all__ = ["blank_frame", "frame_of"]

_ARRAY_BYTES = 95  # of an array's entry in the header and in the index, on the mean


def frame_of(method: Method, source: Source, sites: Sequence[Site], same: Mapping[str, tuple[Site, ...]]) -> FileFrame:
    """Code what the method does not touch, with blank encodings where it acts.

    Args:
        method: whose budget is the whole file.
        source: read once.
        sites: where it acts.
        same: other sites that hold the weight of one of them.

    Cost: one coding of all tensors that stay.
    """
    specs = source.specs()
    places: dict[str, list[Site]] = {}
    for site in (p for s in sites for p in (s, *same.get(s.key, ()))):
        places.setdefault(site.spec.name, []).append(site)

    def trees() -> Iterator[Encoding]:
        for spec in specs:
            tree = source.read(spec.name)
            for site in places.get(spec.name, ()):
                tree = tree.put(site.path, method.blank(site, tree.at(site.path)))
            yield tree

    return blank_frame(specs, trees())


def blank_frame(specs: Sequence[TensorSpec], trees: Iterable[Encoding]) -> FileFrame:
    """The frame of trees that have nothing in them where a method acts.

    Args:
        specs: all tensors.
        trees: one for each, in order, read one at a time where the file is a large one.
    """
    pieces = (code_tensor(spec.name, tree, {}) for spec, tree in zip(specs, trees, strict=True))
    return FileFrame(sum(s.nbytes for s in specs), container_bytes(specs, pieces), POOLED_BELOW, _ARRAY_BYTES)
