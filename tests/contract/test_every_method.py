"""What every method promises, checked on every example of `method_examples`."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from math import prod

import pytest
import torch
from contract.method_examples import (
    LATENCY,
    METHODS,
    STRUCTURED,
    Zoo,
    choosable,
    data,
    example,
    network,
    usual,
    weights_of,
)
from contract.test_every_encoding import same_bits, same_trees
from torch import Tensor, nn

from gossamer.drive import ModelSource, TreeSource, run
from gossamer.drive.evidence import gather
from gossamer.drive.one_shot import apply_plan, plan_method
from gossamer.drive.progress import NoProgress
from gossamer.encoding import Blocks, Encoding, Kept, Mask, Masked, skeleton_of
from gossamer.encoding.spec import Kind
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.base import DENSE, MASKED, Method
from gossamer.methods.code import Delta
from gossamer.methods.factorize import CP, SVD, LowRankPlusSparse, Monarch, TensorTrain, Tucker2, WhitenedSVD
from gossamer.methods.prune import (
    HardThreshold,
    KernelPattern,
    LatencyTable,
    Magnitude,
    Movement,
    NofM,
    Reconstruct,
    Sensitivity,
    Taylor,
)
from gossamer.methods.quantize import (
    AWQ,
    GPTQ,
    HQQ,
    Cast,
    FoldBatchNorm,
    LearnedStep,
    MixedBits,
    NormalFloat,
    PowerOfTwo,
    Rotate,
    RoundToNearest,
    SmoothQuant,
    Ternary,
    VectorRateDistortion,
)
from gossamer.methods.second_order import fisher_blocks
from gossamer.methods.share import Denil, Hashing, KMeans, ProductQuantization, Tie, Translation
from gossamer.methods.shrink import Blocks as ResidualBlocks
from gossamer.methods.shrink import Channels, Heads, NarrowEmbedding
from gossamer.network import attach, specs, tensors

# One target for all networks, of which some cannot take so many bytes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* bytes at the nearest price"),
    pytest.mark.filterwarnings("ignore:.* rows of calibration data for .* inputs"),  # three samples
]

FACTORIZE = (SVD, WhitenedSVD, Tucker2, CP, TensorTrain, Monarch, LowRankPlusSparse)

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
half_too = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"]
)


DENSE_ONLY = (
    *FACTORIZE, Channels, ProductQuantization, Hashing, Tie, Denil, Translation, Rotate, VectorRateDistortion
)  # fmt: skip


def trees_of(model: nn.Module) -> dict[str, Encoding]:
    source = ModelSource(model)
    return {spec.name: source.read(spec.name) for spec in source.specs()}


def statistics(inputs: int) -> dict[str, Tensor]:
    """Of 100 made-up inputs."""
    x = torch.randn(100, inputs, generator=torch.Generator().manual_seed(inputs))
    return {"count": torch.tensor([100.0]), "sum": x.sum(0), "sq": x.square().sum(0), "gram": x.T @ x}


def gathered(trees: Mapping[str, Encoding]) -> dict[str, dict[str, Tensor]]:
    """Made-up gradients for every place in every tree, and statistics of made-up inputs."""
    found = {}
    for name, tree in trees.items():
        for path, node in tree.nodes():
            signed = torch.randn(node.dense_shape(), generator=torch.Generator().manual_seed(len(path)))
            found[name + ("#" + path if path else "")] = {
                "grad": signed,
                "grad_sq": signed.square(),
                "movement": signed,
                "initial_grad": signed,
                "hessian_grad": signed,
                "flow": signed.abs(),
                **({"fisher": fisher_blocks(signed)} if signed.dim() > 1 else {}),
                **statistics(prod(node.dense_shape()[1:])),
            }
    return found


def result_of(
    method: Method, model: nn.Module, trees: Mapping[str, Encoding]
) -> tuple[dict[str, Encoding], list[dict]]:
    """New trees and the JSON of the plan."""
    source = TreeSource(specs(model), trees)
    dtype = next(model.parameters()).dtype
    bound, batches = method.bind(model, example(method, dtype)), data(method, dtype)
    evidence: Mapping[str, Mapping[str, Tensor]] = {}
    if bound.needs and batches is not None:
        evidence = gather(model, specs(model), trees, bound.needs, batches, progress=NoProgress())
    elif bound.needs:
        evidence = gathered(trees)
    planned = plan_method(bound, source, evidence)
    return apply_plan(planned, source), [{"targets": list(s.targets), **s.entry} for s in planned.plan.steps]


def test_every_method_of_the_package_has_an_example() -> None:
    def below(kind: type) -> set[type]:
        return {kind} | {k for sub in kind.__subclasses__() for k in below(sub)}

    ours = {k for k in below(Method) if k.__module__.startswith("gossamer.")}
    concrete = {k for k in ours if not getattr(k, "__abstractmethods__", None)}
    # Differences need a reference in the network's own dtype: tests/methods/test_delta.py.
    # Reconstruction needs pruned weights: tests/methods/test_calibrated.py.
    assert concrete == {type(m) for m in METHODS.values()} | {Delta, Reconstruct}


@every_method
@half_too
def test_shape_and_dtype_stay_and_the_skeleton_is_the_one_promised(method: Method, dtype: torch.dtype) -> None:
    model = network(method, dtype)
    before = trees_of(model)
    bound = method.bind(model, example(method, dtype))
    after, _ = result_of(method, model, before)
    assert after
    for spec in specs(model):
        if spec.name not in after:
            continue
        tree = after[spec.name]
        assert tree.dense_shape() == spec.shape
        assert tuple(tree.to_dense().shape) == spec.shape
        assert bool(tree.to_dense().isfinite().all())
        for path in bound.find(spec, skeleton_of(before[spec.name])).paths:
            promised = bound.produces(skeleton_of(before[spec.name].at(path)))
            found = skeleton_of(tree.at(path))
            if isinstance(method, NarrowEmbedding) and spec.kind is Kind.EMBEDDING:
                assert isinstance(tree, Kept)
                assert isinstance(tree.inner, Masked)
            elif isinstance(method, (*STRUCTURED, CP)):  # which dimensions lose channels, how many: not promised
                assert (found.kind, found.children[0]) == (promised.kind, promised.children[0])
            elif isinstance(method, Tie):  # the first of a pair stays what it was, the second becomes a sum
                assert found in (promised, DENSE)
            elif method.leaves_some:
                assert found in (promised, skeleton_of(before[spec.name].at(path)))
            else:
                assert found == promised
    trainable = attach(copy.deepcopy(model), specs(model), {**before, **after})
    gone = {n for n, t in after.items() if isinstance(t, Kept) and 0 in t.inner.dense_shape()}
    for spec in specs(model):
        if spec.name in gone or spec.name.endswith("num_batches_tracked"):  # with their block
            continue
        module, _, name = spec.name.rpartition(".")
        assert getattr(trainable.get_submodule(module), name).dtype == spec.dtype


@every_method
def test_the_same_input_gives_the_same_result_and_stays_as_it_was(method: Method) -> None:
    model = network(method)
    trees = trees_of(model)
    kept = {name: tree.map_leaves(lambda f: f.tensor.clone()) for name, tree in trees.items()}
    first, first_plan = result_of(method, model, trees)
    second, second_plan = result_of(method, model, trees)
    assert same_trees(first, second)
    assert first_plan == second_plan
    assert same_trees(trees, kept)
    assert all(same_bits(t, tensors(network(method))[n]) for n, t in tensors(model).items())


@every_method
def test_no_result_shares_memory_with_the_network_that_it_came_from(method: Method) -> None:
    model = network(method)
    after, _ = result_of(method, model, trees_of(model))
    mine = {t.data_ptr() for t in tensors(model).values() if t.numel()}
    assert not mine & {f.tensor.data_ptr() for tree in after.values() for f in tree.leaves() if f.tensor.numel()}


@every_method
def test_the_plan_is_json(method: Method) -> None:
    model = network(method)
    _, plan = result_of(method, model, trees_of(model))
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan


@every_method
def test_only_weights_are_touched_unless_named(method: Method) -> None:
    model = network(method)
    after, _ = result_of(method, model, trees_of(model))
    if isinstance(method, Channels) and method.scope == "uniform" and method.score != "batchnorm":
        assert set(after) == {s.name for s in specs(model)} - {"fc2.bias", "batch.num_batches_tracked"}
    elif isinstance(method, FoldBatchNorm):
        assert set(after) == {s.name for s in specs(model) if s.name.startswith(("conv.", "batch."))}
    elif isinstance(method, Heads):
        assert set(after) == {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"}
    elif isinstance(method, NarrowEmbedding):
        assert set(after) == {"tokens.weight", "linear.weight", "segments.weight", "rnn.weight_ih_l0"}
    elif isinstance(method, STRUCTURED):
        assert not any(name.startswith(("fc2.bias", "stem")) for name in after)
    else:
        assert set(after) <= set(weights_of(method))
        mine = weights_of(method)
        assert len(after) >= min(3, sum(s.kind in method.kinds for s in specs(model) if s.name in mine))
    assert not any(s.name in after for s in specs(model) if s.kind is Kind.OTHER)


@every_method
def test_only_and_skip_choose_tensors(method: Method) -> None:
    model = network(method)
    if isinstance(method, FoldBatchNorm):  # there is one layer to choose
        chosen, _ = result_of(FoldBatchNorm(only="conv.weight"), model, trees_of(model))
        assert len(chosen) == 7
        with pytest.raises(CompositionError, match="matches no layer"):
            result_of(FoldBatchNorm(skip="conv.*"), model, trees_of(model))
        return
    if isinstance(method, NarrowEmbedding):
        chosen, _ = result_of(NarrowEmbedding(only="tokens.*"), model, trees_of(model))
        others, _ = result_of(NarrowEmbedding(skip="tokens.*"), model, trees_of(model))
        assert set(chosen) == {"tokens.weight", "linear.weight"}
        assert set(others) == {"segments.weight", "rnn.weight_ih_l0"}
        return
    names = choosable(method)
    if isinstance(method, Heads):  # it has one attention only
        chosen, _ = result_of(type(method)(**{**vars(method), "only": names}), model, trees_of(model))
        assert len(chosen) == 3
        with pytest.raises(CompositionError, match="matches no layer"):
            result_of(type(method)(**{**vars(method), "skip": names}), model, trees_of(model))
        return
    if isinstance(method, Channels) and method.score == "batchnorm":  # one of its layers has one
        chosen, _ = result_of(type(method)(**{**vars(method), "only": "conv.weight"}), model, trees_of(model))
        batch = {f"batch.{key}" for key in ("weight", "bias", "running_mean", "running_var")}
        assert set(chosen) == {"conv.weight", "conv.bias", "fc1.weight"} | batch
        return
    if isinstance(method, ResidualBlocks):
        chosen, _ = result_of(ResidualBlocks(sparsity=1.0, only=names), model, trees_of(model))
        others, _ = result_of(ResidualBlocks(sparsity=1.0, skip=names), model, trees_of(model))
        assert {n.rpartition(".")[0] for n in chosen} == {"blocks.0.conv", "blocks.0.batch"}
        assert {n.rpartition(".")[0] for n in others} == {"blocks.1.conv", "blocks.1.batch"}
        return
    only = type(method)(**{**vars(method), "only": names})
    skip = type(method)(**{**vars(method), "skip": names})
    chosen, _ = result_of(only, model, trees_of(model))
    others, _ = result_of(skip, model, trees_of(model))
    if isinstance(method, Channels):  # what reads a channel goes with it
        assert set(chosen) == {"fc1.weight", "fc1.bias", "fc2.weight"}
        assert "fc2.weight" not in others
    else:
        assert set(chosen) == set(names)
        assert not set(names) & set(others)


@every_method
def test_whatever_the_rules_accept_is_handled(method: Method) -> None:
    """Dense, freely masked, N:M and block-masked weights: accepted exactly if a rule says so, with its skeleton."""
    if isinstance(method, (Heads, ResidualBlocks, NarrowEmbedding)):
        assert [rule.accepts for rule in method.rules()] == [DENSE]
        return
    model = network(method)
    given = {
        "dense": trees_of(model),
        "masked": {**trees_of(model), **run(model, [Magnitude(sparsity=0.4)]).trees},
        "2:4": {**trees_of(model), **(run(model, [METHODS["magnitude-2:4"]]).trees if isinstance(model, Zoo) else {})},
        "rows": {**trees_of(model), **run(model, [METHODS["magnitude-rows-uniform"]]).trees},
    }
    bound = method.bind(model, example(method))
    for name, trees in given.items():
        tree = trees[usual(method)]
        skeleton = skeleton_of(tree)
        accepted = any(rule.accepts.accepts(skeleton) for rule in method.rules())
        assert accepted == (
            DENSE.accepts(skeleton) or (MASKED.accepts(skeleton) and not isinstance(method, DENSE_ONLY))
        ), name
        if isinstance(method, (Channels, FoldBatchNorm, Tie)) or not accepted:
            continue
        after, _ = result_of(method, model, trees)
        made = after[usual(method)]
        assert skeleton_of(made) == bound.produces(skeleton) or isinstance(method, CP), name
        if isinstance(tree, Masked):
            assert not bool((made.to_dense() != 0)[~tree.where.mask()].any()), name


def test_pruning_again_within_a_structure_stays_in_it_and_across_structures_becomes_a_free_mask() -> None:
    model = network(METHODS["magnitude-weights-uniform"])
    rows = METHODS["magnitude-rows-uniform"]
    twice = run(model, [rows, Magnitude(sparsity=0.8, structure=rows.structure)])  # type: ignore[attr-defined]
    across = run(model, [rows, Magnitude(sparsity=0.8)])
    assert isinstance(twice.trees["linear.weight"].at("/where"), Blocks)
    assert isinstance(across.trees["linear.weight"].at("/where"), Mask)


@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        (KMeans(bits=3), Magnitude(sparsity=0.5), "Prune before sharing or quantizing"),
        (RoundToNearest(bits=4), Magnitude(sparsity=0.5), "Prune before sharing or quantizing"),
        (KMeans(bits=3), RoundToNearest(bits=4), "cannot be quantized again"),
        (RoundToNearest(bits=4), KMeans(bits=3), "cannot be clustered again"),
        (Magnitude(sparsity=0.5), SVD(rank=2), "factorize first"),
        (KMeans(bits=3), SVD(rank=2), "factorize first"),
        (Magnitude(sparsity=0.5), Tucker2(macs=0.5), "factorize first"),
        (Magnitude(sparsity=0.5), CP(rank=2), "factorize first"),
        (KMeans(bits=3), TensorTrain(rank=2), "factorize first"),
        (Magnitude(sparsity=0.5), Monarch(blocks=2), "factorize first"),
        (SVD(rank=2), LowRankPlusSparse(rank=2, density=0.1), "changes no layer|factorize first"),
        (Ternary(), PowerOfTwo(), "cannot be quantized again"),
        (NormalFloat(), KMeans(bits=2), "cannot be clustered again"),
        (LearnedStep(), Magnitude(sparsity=0.5), "Prune before sharing or quantizing"),
        (KMeans(bits=3), Cast(dtype="float16"), "smaller than a cast"),
        (RoundToNearest(), FoldBatchNorm(), "Fold before"),
        (Magnitude(sparsity=0.5), Rotate(inner=RoundToNearest()), "would fill a mask's zeros"),
        (HQQ(), RoundToNearest(), "cannot be quantized again"),
        (Magnitude(sparsity=0.5), Channels(sparsity=0.5), "Remove channels first"),
        (SVD(rank=2), Channels(sparsity=0.5), "Remove channels first"),
        (KMeans(bits=3), Channels(sparsity=0.5), "Remove channels first"),
        (Channels(sparsity=0.5), Channels(sparsity=0.5), "Remove channels first"),
        (Magnitude(sparsity=0.5), ProductQuantization(bits=2), "use KMeans on those"),
        (Magnitude(sparsity=0.5), VectorRateDistortion(rate=1e-4), "use RateDistortion on those"),
        (Magnitude(sparsity=0.5), Hashing(stored=0.1), "hash first"),
        (Magnitude(sparsity=0.5), Tie(threshold=1.0), "Tie plain weights first"),
        (KMeans(bits=3), Denil(stored=0.5), "predict first"),
        (KMeans(bits=3), Translation(tolerance=0.1), "look for them first"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Method) else "",
)
def test_an_impossible_order_is_refused_with_advice(first: Method, second: Method, advice: str) -> None:
    model = network(Channels(sparsity=0.5))
    with pytest.raises(CompositionError, match=advice) as caught:
        run(model, [first, second])
    assert "\n" not in str(caught.value)
    assert "recipe entry 2" in str(caught.value)


@pytest.mark.parametrize(
    "recipe",
    [
        [Channels(sparsity=0.5), SVD(energy=0.5), Magnitude(sparsity=0.5), KMeans(bits=1)],
        [Channels(sparsity=0.5), Magnitude(sparsity=0.5), RoundToNearest(bits=4)],
        [SVD(rank=2), Magnitude(sparsity=0.3), RoundToNearest(bits=3, group=3)],
        [TensorTrain(rank=2, cores=2), Tucker2(macs=0.6), Magnitude(sparsity=0.3), KMeans(bits=3)],
        [LowRankPlusSparse(rank=1, density=0.1), KMeans(bits=3), RoundToNearest(bits=4, only="*.bias")],
        [Magnitude(sparsity=0.5), KMeans(bits=2), RoundToNearest(bits=8, group="tensor", only="*.bias")],
    ],
    ids=[
        "shrink-factorize-prune-share",
        "shrink-prune-quantize",
        "factorize-prune-quantize",
        "trains-tucker-prune-share",
        "sum-share-biases",
        "prune-share-biases",
    ],
)
@half_too
def test_the_usual_orders_compose(recipe: list[Method], dtype: torch.dtype) -> None:
    model = network(Channels(sparsity=0.5), dtype)
    state = run(model, recipe)
    for spec in state.specs:
        assert state.trees[spec.name].dense_shape() == spec.shape
    assert state.network()(torch.ones(1, 2, 8, 8, dtype=dtype)).shape == (1, 5)


def test_biases_and_norms_are_compressed_when_named() -> None:
    model = network(KMeans(bits=3))
    state = run(model, [RoundToNearest(bits=8, group="tensor", only=("*.bias", "norm.weight"))])
    before = trees_of(model)
    changed = {n for n, t in state.trees.items() if skeleton_of(t) != skeleton_of(before[n])}
    assert changed == {s.name for s in state.specs if s.name.endswith("bias")} | {"norm.weight"}


def test_factors_are_sites_of_their_own() -> None:
    state = run(network(SVD(rank=2)), [SVD(rank=2), Magnitude(sparsity=0.5)])
    targets = [t for step in state.plans[1]["steps"] for t in step["targets"]]
    assert "linear.weight#/u" in targets
    assert "linear.weight#/v" in targets
    assert "up.weight#/inner/u" in targets


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(method: Method, bad: float) -> None:
    model = network(method)
    name = usual(method)
    with torch.no_grad():
        tensors(model)[name].view(-1)[3] = bad
    with pytest.raises(DataError, match=rf"'{name}'.*1 NaN or infinite"):
        if method.needs and data(method) is None:  # run would ask for data first
            result_of(method, model, trees_of(model))
        else:
            run(model, [method], data=data(method))


@every_method
def test_a_method_that_matches_nothing_is_refused(method: Method) -> None:
    nothing = type(method)(**{**vars(method), "only": "no.such.tensor"})
    with pytest.raises(CompositionError, match=f"{type(method).__name__} matches no layer"):
        if method.needs and data(method) is None:  # run would ask for data first
            result_of(nothing, network(method), trees_of(network(method)))
        else:
            run(network(method), [nothing], data=data(method))


@pytest.mark.parametrize(
    "make",
    [
        Magnitude,
        lambda: Magnitude(sparsity=1.5),
        lambda: Magnitude(sparsity=float("nan")),
        lambda: Magnitude(sparsity=0.5, structure=METHODS["magnitude-2:4"].structure),  # type: ignore[attr-defined]
        lambda: Magnitude(sparsity=0.5, scope="galactic"),  # type: ignore[arg-type]
        lambda: Magnitude(sparsity=0.5, macs=0.5),
        lambda: Magnitude(budget_bytes=0),
        lambda: Magnitude(macs=1.5),
        lambda: Magnitude(ms=1.0),
        lambda: Magnitude(sparsity=0.5, latency=LATENCY),
        lambda: Magnitude(structure=KernelPattern(), scope="global"),
        lambda: Movement(sparsity=0.5, scope="lamp"),
        lambda: Movement(sparsity=0.5, structure=KernelPattern()).at(0.0),
        lambda: Taylor(sparsity=0.5, form="third"),  # type: ignore[arg-type]
        lambda: HardThreshold(threshold=-1.0),
        lambda: HardThreshold(threshold=1.0, structure=NofM(2, 4)),
        lambda: KernelPattern(entries=0),
        lambda: Sensitivity((("w", ((0.9, 1.0), (0.5, 2.0))),)),
        lambda: LatencyTable((("w", ((0.5, 1.0),)),)),
        lambda: KMeans(bits=0),
        lambda: KMeans(bits=9),
        lambda: KMeans(bits=2, group_size=0),
        lambda: KMeans(bits=2, group_size=4, network_wide=True),
        lambda: RoundToNearest(bits=1),
        lambda: Ternary(threshold=0.0),
        lambda: Ternary(threshold="best"),  # type: ignore[arg-type]
        lambda: Ternary(group=0),
        lambda: PowerOfTwo(bits=7),
        lambda: PowerOfTwo(nearest="cubic"),  # type: ignore[arg-type]
        lambda: NormalFloat(bits=1),
        lambda: NormalFloat(scale_dtype="float8"),  # type: ignore[arg-type]
        lambda: LearnedStep(bits=9),
        MixedBits,
        lambda: MixedBits(average_bits=3, budget_bytes=100),
        lambda: MixedBits(average_bits=3, bits=(4, 2)),
        lambda: MixedBits(average_bits=3, bits=(1, 2)),
        lambda: MixedBits(average_bits=3, weighted="loss"),  # type: ignore[arg-type]
        lambda: KMeans(bits=2, weighted="inputs", network_wide=True),
        lambda: KMeans(bits=2, weighted="loss"),  # type: ignore[arg-type]
        lambda: GPTQ(bits=1),
        lambda: GPTQ(group=0),
        lambda: GPTQ(damp=-0.1),
        lambda: GPTQ(candidates=0),
        lambda: GPTQ(rounds=-1),
        lambda: GPTQ(scale_dtype="int8"),  # type: ignore[arg-type]
        lambda: AWQ(steps=0),
        lambda: AWQ(candidates=0),
        lambda: SmoothQuant(alpha=1.5),
        lambda: HQQ(p=0.0),
        lambda: HQQ(iterations=0),
        lambda: Rotate(inner=Magnitude(sparsity=0.5)),
        lambda: Rotate(inner=MixedBits(average_bits=3)),
        lambda: Cast(dtype="float4"),  # type: ignore[arg-type]
        lambda: RoundToNearest(bits=4, group=0),
        lambda: RoundToNearest(bits=4, group="row"),  # type: ignore[arg-type]
        lambda: RoundToNearest(bits=4, scale_dtype="int8"),  # type: ignore[arg-type]
        WhitenedSVD,
        lambda: WhitenedSVD(rank=2, density=0.5),
        lambda: WhitenedSVD(rank=(("*", 0),)),
        lambda: WhitenedSVD(density=1.5),
        lambda: WhitenedSVD(energy=-0.5),
        lambda: WhitenedSVD(budget_bytes=0),
        lambda: WhitenedSVD(rank=2, scope="local"),  # type: ignore[arg-type]
        lambda: WhitenedSVD(rank=2, outputs="hessian"),  # type: ignore[arg-type]
        lambda: WhitenedSVD(rank=2, damping=0.0),
        SVD,
        lambda: SVD(rank=2, energy=0.5),
        lambda: SVD(rank=0),
        lambda: SVD(energy=1.5),
        lambda: SVD(budget_bytes=0),
        Tucker2,
        lambda: Tucker2(ranks=(2, 2), macs=0.5),
        lambda: Tucker2(ranks=(0, 2)),
        lambda: Tucker2(ranks=(2,)),  # type: ignore[arg-type]
        lambda: Tucker2(energy=1.5),
        lambda: Tucker2(macs=-0.5),
        lambda: Tucker2(budget_bytes=0),
        lambda: Tucker2(macs=0.5, inputs="sq"),  # type: ignore[arg-type]
        lambda: Tucker2(macs=0.5, inputs="gram", damping=0.0),
        CP,
        lambda: CP(rank=2, macs=0.5),
        lambda: CP(rank=0),
        lambda: CP(macs=2.0),
        TensorTrain,
        lambda: TensorTrain(rank=2, error=0.5),
        lambda: TensorTrain(rank=0),
        lambda: TensorTrain(error=-0.5),
        lambda: TensorTrain(budget_bytes=0),
        lambda: TensorTrain(rank=2, cores=1),
        lambda: TensorTrain(rank=2, rows=(2, 3)),
        lambda: TensorTrain(rank=2, rows=(2, 3), columns=(2, 3, 4)),
        lambda: TensorTrain(rank=2, rows=(2, 0), columns=(2, 3)),
        lambda: TensorTrain(rank=2, rows=(2, 3), columns=(2, 3), cores=4),
        lambda: Monarch(blocks=0),
        lambda: Monarch(blocks=(2, 0)),
        lambda: Monarch(blocks=2, inputs="sq"),  # type: ignore[arg-type]
        lambda: Monarch(blocks=2, damping=2.0),
        lambda: LowRankPlusSparse(rank=0, density=0.1),
        lambda: LowRankPlusSparse(rank=2, density=1.5),
        lambda: LowRankPlusSparse(rank=2, density=0.1, rounds=0),
        lambda: LowRankPlusSparse(rank=2, density=0.1, inputs="fisher"),  # type: ignore[arg-type]
        lambda: LowRankPlusSparse(rank=2, density=0.1, damping=0.0),
        lambda: Channels(sparsity=-0.1),
        VectorRateDistortion,
        lambda: VectorRateDistortion(rate=0.0),
        lambda: VectorRateDistortion(rate=1.0, target="8x"),
        lambda: VectorRateDistortion(target="small"),
        lambda: VectorRateDistortion(rate=1.0, dim=0),
        lambda: VectorRateDistortion(rate=1.0, dim=()),
        lambda: VectorRateDistortion(rate=1.0, entries=257),
        lambda: VectorRateDistortion(rate=1.0, inputs="gram"),  # type: ignore[arg-type]
        lambda: VectorRateDistortion(rate=1.0, weighted="size"),  # type: ignore[arg-type]
        lambda: VectorRateDistortion(rate=1.0, scale_dtype="int8"),  # type: ignore[arg-type]
        lambda: ProductQuantization(dim=0),
        lambda: ProductQuantization(bits=9),
        lambda: ProductQuantization(inputs="sq"),  # type: ignore[arg-type]
        lambda: ProductQuantization(inputs="gram", damping=0.0),
        lambda: ProductQuantization(iterations=0),
        lambda: Hashing(stored=0.0),
        lambda: Hashing(stored=1.1),
        Tie,
        lambda: Tie(threshold=0.1, pairs=(("a", "b"),)),
        lambda: Tie(threshold=2.5),
        lambda: Tie(threshold=0.1, rank=-1),
        lambda: Tie(threshold=0.1, inputs="sq"),  # type: ignore[arg-type]
        lambda: Tie(threshold=0.1, inputs="gram", damping=-1.0),
        lambda: Tie(pairs=(("a", "b"), ("b", "c"))),
        lambda: Tie(pairs=(("a",),)),  # type: ignore[arg-type]
        lambda: Denil(stored=0.0),
        lambda: Denil(stored=0.5, grid=()),
        lambda: Denil(stored=0.5, kernel="linear"),  # type: ignore[arg-type]
        lambda: Denil(stored=0.5, sigma=0.0),
        lambda: Denil(stored=0.5, ridge=0.0),
        lambda: Denil(stored=0.5, groups=0),
        lambda: Translation(tolerance=-0.1),
        lambda: Translation(tolerance=0.1, input_grid=(0, 4)),
        lambda: Translation(tolerance=0.1, stride=0),
        lambda: Translation(tolerance=0.1, tiles=(1,)),  # type: ignore[arg-type]
        Channels,
        lambda: Channels(sparsity=0.5, macs=0.5),
        lambda: Channels(ms=0.0),
        lambda: Channels(sparsity=0.5, multiple=0),
        lambda: Channels(sparsity=0.5, score="luck"),  # type: ignore[arg-type]
        lambda: Heads(sparsity=0.5, scope="lamp"),  # type: ignore[arg-type]
        Heads,
        lambda: ResidualBlocks(parameters=2.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(PlanError):
        make()  # type: ignore[operator]


def test_channels_that_go_are_held_by_kept() -> None:
    state = run(network(Channels(sparsity=0.5)), [Channels(sparsity=0.5)])
    assert isinstance(state.trees["fc1.weight"], Kept)
    assert state.trees["fc1.weight"].inner.dense_shape() == (6, 16)
