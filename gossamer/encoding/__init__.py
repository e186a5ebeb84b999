"""Encodings: what a weight is. See `gossamer.encoding.node` for the protocol."""

from gossamer.encoding.factors import CP, LowRank, Monarch, TensorTrain, Tucker
from gossamer.encoding.node import Category, Codec, Encoding, Leaf, Pattern, Role, Value
from gossamer.encoding.patterns import NM, Blocks, KernelShapes, Mask
from gossamer.encoding.skeleton import Skeleton, skeleton_of
from gossamer.encoding.spec import Kind, TensorSpec
from gossamer.encoding.values import Affine, Codebook, Dense, Grouping
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
    "Dense",
    "Encoding",
    "Grouping",
    "Kept",
    "KernelShapes",
    "Kind",
    "Leaf",
    "LowRank",
    "Mask",
    "Masked",
    "Monarch",
    "Pattern",
    "Permuted",
    "Ref",
    "Role",
    "Scaled",
    "Skeleton",
    "Sum",
    "TensorSpec",
    "TensorTrain",
    "Tucker",
    "Value",
    "View",
    "link",
    "skeleton_of",
]
