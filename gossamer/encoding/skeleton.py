"""The shape of a tree without its numbers: enough to check a whole recipe before a byte is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gossamer.encoding.node import Child, Encoding, declarations

__all__ = ["Skeleton", "skeleton_of"]


@dataclass(frozen=True)
class Skeleton:
    """A node kind and the skeletons of its children.

    As a pattern to compare with, an abstract kind such as `Pattern` stands for all its subclasses.

    Example:
        >>> from gossamer.encoding.values import Dense
        >>> str(Skeleton(Dense))
        'Dense'
    """

    kind: type[Encoding]
    children: tuple[tuple[str, Skeleton], ...] = ()

    def accepts(self, found: Skeleton) -> bool:
        """Whether ``found`` is of this shape; abstract kinds accept any subclass with any children."""
        if not issubclass(found.kind, self.kind):
            return False
        if getattr(self.kind, "__abstractmethods__", None):
            return True
        if len(self.children) != len(found.children):
            return False
        pairs = zip(self.children, found.children, strict=True)
        return all(a == b and mine.accepts(theirs) for (a, mine), (b, theirs) in pairs)

    def at(self, path: str) -> Skeleton:
        """The part of the skeleton at a path such as ``/u``."""
        node = self
        for field in path.split("/")[1:]:
            node = dict(node.children)[field]
        return node

    def put(self, path: str, new: Skeleton) -> Skeleton:
        """The skeleton with the part at ``path`` replaced."""
        if not path:
            return new
        field, _, rest = path[1:].partition("/")
        below = "/" + rest if rest else ""
        changed = tuple((n, c.put(below, new) if n == field else c) for n, c in self.children)
        return Skeleton(self.kind, changed)

    def weight_paths(self) -> Iterator[str]:
        """Paths of all sub-trees that are weights, topmost first, the tree itself included."""
        yield ""
        for name, below in self.children:
            declared = _declared_child(self.kind, name)
            if declared is not None and declared.weight:
                for path in below.weight_paths():
                    yield f"/{name}{path}"

    def __str__(self) -> str:
        inner = ", ".join(str(c) for _, c in self.children)
        return f"{self.kind.__name__}({inner})" if inner else self.kind.__name__


def _declared_child(kind: type[Encoding], name: str) -> Child | None:
    found = declarations(kind).get(name.partition(".")[0])
    return found if isinstance(found, Child) else None


def skeleton_of(tree: Encoding) -> Skeleton:
    """The skeleton of a tree."""
    children = tuple((n, skeleton_of(p)) for n, p in tree.parts() if isinstance(p, Encoding))
    return Skeleton(type(tree), children)
