"""Block by block: every layer's evidence is that of the network with everything before it compressed, and no other."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.drive.blocks import find_blocks
from gossamer.drive.calls import call, inputs_of
from gossamer.drive.recipe import run
from gossamer.drive.recipe_file import dump_recipe, parse_recipe
from gossamer.drive.watch import Watch, no_fast_path, watched_names
from gossamer.errors import CompositionError, DataError, PlanError
from gossamer.methods.prune import Magnitude
from gossamer.network.inspect import specs
from tests.drive.sequential_parts import Chain, Damp, Tied, Whole, damped, networks

NETWORKS = list(networks())


def grams(network: nn.Module, data: list[Any]) -> dict[str, Tensor]:
    """Of a whole network, directly."""
    listed = specs(network)
    watch = Watch(watched_names(network, listed, frozenset(s.name for s in listed)), frozenset({"gram"}))
    with torch.inference_mode(), no_fast_path(), watch:
        for batch in data:
            call(network.eval(), inputs_of(batch))
    return {name: found["gram"] for name, found in watch.finish().items()}


def by_hand(network: nn.Module, data: list[Any], order: list[list[str]]) -> dict[str, Tensor]:
    """Whole runs only: for each group the network as it is now is run, and the group's weights are changed."""
    given: dict[str, Tensor] = {}
    parameters = dict(network.named_parameters())
    turned = {s.name: s.output_first for s in specs(network)}
    gates = {s.name: s.gates for s in specs(network)}
    for names in order:
        found = grams(network, data)
        for name in names:
            weight = parameters[name].detach()
            first = weight.permute(turned[name]) if turned[name] else weight
            given[name] = found[name]
            new = torch.cat([damped(gate, found[name]) for gate in first.chunk(gates[name])])
            weight.copy_(new.permute(turned[name]) if turned[name] else new)
    return given


ORDERS = {
    "chain": [["embed.weight"], *([f"layers.{i}.up.weight", f"layers.{i}.down.weight"] for i in range(3)),
              ["head.weight"]],
    "tied": [["embed.weight"], *([f"layers.{i}.up.weight", f"layers.{i}.down.weight"] for i in range(3))],
    "unet": [["down.0.weight"], ["down.1.weight"], ["up.0.weight"], ["up.1.weight"]],
    "coded": [["encoder.0.weight"], ["encoder.2.weight"], *([f"cross.{i}.out_proj.weight"] for i in range(3))],
    "decoder": [["encoder.weight_ih_l0", "encoder.weight_hh_l0"],
                ["embed.weight", "cell.weight_ih", "cell.weight_hh", "head.weight"]],
    "hidden": [[f"layers.{i}.linear.weight"] for i in range(3)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "network", "data"), NETWORKS, ids=[n for n, _, _ in NETWORKS])
@pytest.mark.parametrize("limit", [1 << 30, 0], ids=["memory", "disk"])
def test_every_block_sees_the_compressed_ones_before_it(
    name: str, network: nn.Module, data: list[Any], limit: int
) -> None:
    entry = gs.BlockByBlock(methods=(Damp(),), activation_bytes=limit, statistic_bytes=1 if limit == 0 else 1 << 30)
    Damp.given.clear()
    small = gs.compress(network, [entry], data=data)
    given = {key.partition("#")[0]: gram for key, gram in Damp.given.items()}
    expected_network = small.dense()  # the same architecture
    expected_network.load_state_dict(network.state_dict())
    with torch.no_grad():
        expected = by_hand(expected_network, data, ORDERS[name])
    assert set(given) == set(expected)
    for key, gram in expected.items():
        assert torch.allclose(given[key], gram, rtol=1e-4, atol=1e-4), key
    for key, value in expected_network.state_dict().items():
        assert torch.allclose(small.dense().state_dict()[key], value, rtol=1e-4, atol=1e-5), key
    anew = [p.get("run_anew") for p in small.notes["plan"]]
    assert bool(anew[0]) == (name == "hidden")  # only there outputs cannot stand in for blocks


def test_layer_by_layer_a_layer_sees_the_compressed_ones_of_its_own_block() -> None:
    _, network, data = NETWORKS[0]
    Damp.given.clear()
    small = gs.compress(network, [gs.BlockByBlock(methods=(Damp(),), layer_by_layer=True)], data=data)
    reference = small.dense()
    reference.load_state_dict(network.state_dict())
    order = [[n] for names in ORDERS["chain"] for n in names]
    with torch.no_grad():
        expected = by_hand(reference, data, order)
    for key, gram in expected.items():
        assert torch.allclose(Damp.given[key], gram, rtol=1e-4, atol=1e-4), key


@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_a_method_that_must_look_first_plans_once_for_the_whole_network(limit: int) -> None:
    _, network, data = NETWORKS[0]
    small = gs.compress(network, [gs.BlockByBlock(methods=(Whole(),), statistic_bytes=limit)], data=data)
    dense = grams(_copy(network), data)
    energy = {name: float(gram.trace()) for name, gram in dense.items()}
    factors = {s["targets"][0]: s["factor"] for s in small.notes["plan"][0]["steps"]}
    assert factors.keys() == energy.keys()
    for name, factor in factors.items():
        assert factor == pytest.approx(energy[name] / sum(energy.values()), rel=1e-4)


def _copy(network: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(network)


def test_methods_behind_the_first_find_what_it_left() -> None:
    _, network, data = NETWORKS[0]
    recipe = [gs.BlockByBlock(methods=(Damp(), Magnitude(sparsity=0.5)))]
    small = gs.compress(network, recipe, data=data)
    for name in ("layers.1.up.weight", "head.weight"):
        weight = small.state_dict()[name]
        assert int((weight == 0).sum()) == weight.numel() // 2
    assert [p["method"] for p in small.notes["plan"]] == ["Damp", "Magnitude"]


def test_gradients_are_those_of_the_dense_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    data = [(torch.randn(5, 4), torch.randint(0, 3, (5,))) for _ in range(2)]
    taylor = gs.prune.Taylor(sparsity=0.5, scope="global")
    one = gs.compress(network, [taylor], data=data)
    blocks = gs.compress(network, [gs.BlockByBlock(methods=(taylor,))], data=data)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, blocks.state_dict()[name])


class Narrowed(nn.Module):
    """Blocks of which each reads the channels that the one before it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4))
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def test_blocks_that_lost_channels_are_fed_by_the_compressed_ones_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Narrowed().eval(), torch.randn(400, 16)
    data = [(x, torch.zeros(400, dtype=torch.int64))]
    fewer = gs.shrink.Channels(sparsity=0.25, multiple=1)
    pruned = gs.prune.SparseGPT(sparsity=0.5)
    small = gs.compress(network, [fewer], data=data).dense()
    apart = gs.compress(small, [gs.BlockByBlock(methods=(pruned,))], data=data).dense()(x)
    together = gs.compress(network, [fewer, gs.BlockByBlock(methods=(pruned,))], data=data)
    at_once = gs.compress(network, [fewer, pruned], data=data)
    torch.testing.assert_close(together.dense()(x), apart, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(at_once.dense()(x), apart, atol=1e-3)
    kept = gs.compress(network, [fewer, gs.BlockByBlock(methods=(pruned,))], data=data, checkpoint=tmp_path / "run")
    together.save(tmp_path / "together.gsm")
    kept.save(tmp_path / "kept.gsm")  # what went through the checkpoint shares its masks still
    assert (tmp_path / "kept.gsm").read_bytes() == (tmp_path / "together.gsm").read_bytes()


def test_blocks_are_repeated_children_and_the_largest_modules_beside_them() -> None:
    names = [b.name for b in find_blocks(Chain())]
    assert names == ["embed", "layers.0", "layers.1", "layers.2", "norm", "head"]
    with_named = [b.name for b in find_blocks(Chain(), ("layers.1.up", "head"))]
    assert with_named == ["embed", "layers.0", "layers.1.up", "layers.1.down", "layers.2", "norm", "head"]
    stages = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)),
        nn.Sequential(*(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(2))),
    )
    assert [b.name for b in find_blocks(stages)] == ["0", "1.0", "1.1"]


def test_memory_beyond_the_network_is_one_block() -> None:
    """Bytes of all tensors that are alive, as the collector knows them, at every report of progress."""
    torch.manual_seed(0)
    layers, width, rows = 5, 32, 512
    network = nn.Sequential(nn.Linear(4, width), *(nn.Linear(width, width) for _ in range(layers)))
    data = [torch.randn(rows, 4) for _ in range(2)]
    outputs = 2 * rows * width * 4

    class Meter:
        peak = 0

        def update(self, text: str, done: int, total: int) -> None:
            self.peak = max(self.peak, alive())

    def alive() -> int:
        # those that other tests have traced with are of other types, and hold nothing
        found = [t.untyped_storage() for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]
        return sum({s.data_ptr(): s.nbytes() for s in found}.values())

    def measured(**settings: Any) -> int:
        meter, start = Meter(), alive()
        entry = gs.BlockByBlock(methods=(Damp(),), **settings)
        Damp.given.clear()
        run(network, [entry], data=data, progress=meter)
        Damp.given.clear()
        return meter.peak - start

    weights = sum(p.numel() for p in network.parameters()) * 4
    in_memory, on_disk = measured(), measured(activation_bytes=0)
    # the recipe's own copy of the network, new weights, the recorded outputs of two blocks, one batch on its way
    assert in_memory < 2 * weights + 2 * outputs + outputs // 2
    assert on_disk < 2 * weights + outputs


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ([], DataError, "no batches"),
        ([torch.randn(2, 3)], DataError, "batch 0: the network rejects it: RuntimeError"),
        ([torch.randn(2, 4), torch.randn(2, 3)], DataError, "batch 1: the network rejects it"),
        ([torch.full((8, 4), float("nan"))], DataError, r"0\.weight.*not finite"),
        (["text"], DataError, "no tensor"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_name(data: list[Any], error: type[Exception], text: str) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(error, match=text):
        gs.compress(network, [gs.BlockByBlock(methods=(Damp(),))], data=data)


def test_a_later_sample_that_a_tied_network_rejects_is_named_too() -> None:
    data = [torch.zeros(1, 20).long(), torch.full((1, 20), 99)]
    with pytest.raises(DataError, match="batch 1: the network rejects it: IndexError"):
        gs.compress(Tied(), [gs.BlockByBlock(methods=(Damp(),))], data=data)


def test_too_few_rows_for_a_gram_matrix_are_said_once_with_how_many_are_needed() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"0\.weight: found 2 rows for the Gram matrix of 8 inputs") as said:
        small = gs.compress(network, [gs.BlockByBlock(methods=(Damp(),))], data=[torch.randn(2, 8)])
    assert len(said) == 1
    assert small.notes["plan"][0]["rows_below_inputs"] == {"0.weight": [2, 8], "2.weight": [2, 8]}


def test_at_most_so_many_samples_are_used() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    data = [torch.ones(3, 4) for _ in range(5)]
    Damp.given.clear()
    gs.compress(network, [gs.BlockByBlock(methods=(Damp(),), samples=7)], data=data)
    assert float(Damp.given["0.weight"][0, 0]) == 6


def test_layers_whose_inputs_cannot_be_seen_are_left_alone_with_the_reason() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bilinear, self.linear = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(torch.einsum("ni,oi->no", x, self.bilinear.weight))
            return out

    small = gs.compress(Own(), [gs.BlockByBlock(methods=(Damp(),))], data=[torch.randn(9, 4)])
    assert "the first batch gives this tensor no inputs" in small.skipped["bilinear.weight"]


def test_networks_take_mappings_as_keywords() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

        def forward(self, *, left: Tensor, right: Tensor) -> dict[str, Tensor]:
            return {"out": self.layers[1](self.layers[0](left) + right)}

    data = [{"left": torch.randn(9, 4), "right": torch.randn(9, 4)}]
    Damp.given.clear()
    gs.compress(Named(), [gs.BlockByBlock(methods=(Damp(),))], data=data)
    assert set(Damp.given) == {"layers.0.weight", "layers.1.weight"}


def test_the_entry_is_the_same_in_a_file() -> None:
    recipe = [gs.BlockByBlock(methods=(Magnitude(sparsity=0.5),), blocks=("layers.*",), samples=16)]
    import yaml

    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(PlanError, match="at least one"):
        gs.BlockByBlock(methods=())
    with pytest.raises(PlanError, match="expected methods"):
        gs.BlockByBlock(methods=("gptq",))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="passes"):
        gs.BlockByBlock(methods=(gs.prune.SynFlow(sparsity=0.5),))
    with pytest.raises(PlanError, match="matches no module"):
        run(Chain(), [gs.BlockByBlock(methods=(Damp(),), blocks=("layer.*",))], data=[torch.zeros(1, 2).long()])
    with pytest.raises((CompositionError, PlanError), match="matches no layer"):
        run(Chain(), [gs.BlockByBlock(methods=(Damp(only="x"),))], data=[torch.zeros(1, 2).long()])


def test_a_dry_run_names_the_blocks_and_looks_at_nothing() -> None:
    state = run(Chain(), [gs.BlockByBlock(methods=(Magnitude(sparsity=0.5),))], training=False)
    assert state.plans[0]["blocks"][1:4] == ["layers.0", "layers.1", "layers.2"]
    assert len(state.plans[0]["steps"]) == 8
