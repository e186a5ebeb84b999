"""Encodings: what a weight is. See `gossamer.encoding.node` for the protocol."""

from gossamer.encoding.convolutional import Convolutional
from gossamer.encoding.delta import Delta, External, provide
from gossamer.encoding.drawn import Drawn
from gossamer.encoding.factors import CP, LowRank, Monarch, TensorTrain, Tucker
from gossamer.encoding.generated import Hashed, KernelBasis
from gossamer.encoding.interpolation import Interpolation
from gossamer.encoding.levels import NormalLevels, PowerLevels
from gossamer.encoding.node import Category, Codec, Encoding, Leaf, Pattern, Role, Value
from gossamer.encoding.patterns import NM, Blocks, KernelShapes, Mask
from gossamer.encoding.rotated import Rotated
from gossamer.encoding.skeleton import Skeleton, skeleton_of
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Affine, Codebook, Constant, Dense, Grouping
from gossamer.encoding.vectors import VectorCodebook
from gossamer.encoding.weights import Concat, Kept, Masked, Permuted, Ref, Scaled, Sum, View, link

__all__ = [
    "CP",
    "NM",
    "Affine",
    "Blocks",
    "Category",
    "Codebook",
    "Codec",
    "Concat",
    "Constant",
    "Convolutional",
    "Delta",
    "Dense",
    "Drawn",
    "Encoding",
    "External",
    "Grouping",
    "Hashed",
    "Interpolation",
    "Kept",
    "KernelBasis",
    "KernelShapes",
    "Kind",
    "Leaf",
    "LowRank",
    "Mask",
    "Masked",
    "Monarch",
    "NormalLevels",
    "Pattern",
    "Permuted",
    "PowerLevels",
    "Ref",
    "Role",
    "Rotated",
    "Scaled",
    "Skeleton",
    "Sum",
    "TensorSpec",
    "TensorTrain",
    "Tucker",
    "Value",
    "VectorCodebook",
    "View",
    "link",
    "provide",
    "skeleton_of",
]
