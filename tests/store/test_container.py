"""What a container holds and costs: readable by others, shared once, every byte accounted for, small overhead."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contract.test_every_encoding import same_bits, same_trees
from safetensors import safe_open
from store.forge import pruned_and_shared, shrunk_and_factorized
from torch import Tensor, nn

from gossamer.drive import run
from gossamer.encoding import Codebook, Dense, Encoding, LowRank, Ref, TensorSpec
from gossamer.errors import CompositionError, DataError, FormatError
from gossamer.methods.prune import Magnitude
from gossamer.methods.quantize import RoundToNearest
from gossamer.methods.share import KMeans
from gossamer.network import specs, tensors
from gossamer.store import read_container, write_container
from gossamer.store.safetensors_file import dense_file_bytes, write_safetensors


class Buffers(nn.Module):
    """One buffer of any dtype and shape."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("b", tensor)


@pytest.mark.parametrize("make", [pruned_and_shared, shrunk_and_factorized], ids=lambda m: m.__name__)
def test_the_safetensors_library_opens_it(make: object, tmp_path: Path) -> None:
    found, trees = make()  # type: ignore[operator]
    write_container(tmp_path / "a.gsm", found, trees)
    with safe_open(tmp_path / "a.gsm", "pt") as file:
        assert "gsm.index" in file.keys()  # noqa: SIM118
        assert file.metadata()["gossamer"].startswith("1 ")
        for name in file.keys():  # noqa: SIM118
            assert file.get_tensor(name).numel() > 0


def test_incompressible_tensors_are_ordinary_arrays_under_their_own_name(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(-(1 << 31), 1 << 31, (64, 32), generator=random).to(torch.int32)
    model = nn.Module()
    model.register_buffer("noise", noise)
    write_container(tmp_path / "a.gsm", specs(model), {"noise": Dense(noise, fixed=True)})
    assert same_bits(safetensors.torch.load_file(tmp_path / "a.gsm")["noise"], noise)
    assert same_bits(read_container(tmp_path / "a.gsm").trees["noise"].to_dense(), noise)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3),
        torch.tensor([True, False, True]),
        torch.zeros(0, 3),
        torch.zeros(3, 0),
        torch.randn(4, 3).t(),
        torch.randn(5, dtype=torch.float64),
        torch.tensor([1, -5, 1 << 62]),
        torch.tensor([1, -5], dtype=torch.int8),
        torch.tensor([300, -5], dtype=torch.int16),
        torch.tensor([-0.0, float("nan"), float("inf")], dtype=torch.float16),
        torch.randn(3000).bfloat16(),
        torch.randn(20, 200),
        torch.zeros(4, dtype=torch.float8_e4m3fn),
    ],
    ids=lambda t: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}",
)
def test_any_tensor_is_kept_bit_for_bit(tensor: Tensor, tmp_path: Path) -> None:
    found = specs(Buffers(tensor))
    write_container(tmp_path / "a.gsm", found, {"b": Dense(tensor, fixed=True)})
    again = read_container(tmp_path / "a.gsm", found).trees["b"]
    assert isinstance(again, Dense)
    assert same_bits(again.array, tensor)


def test_dtypes_and_names_that_cannot_be_stored_are_refused(tmp_path: Path) -> None:
    tensor = torch.zeros(2, dtype=torch.complex64)
    with pytest.raises(DataError, match="complex64"):
        write_container(tmp_path / "a.gsm", specs(Buffers(tensor)), {"b": Dense(tensor, fixed=True)})
    model = nn.Module()
    model.register_module("gsm", nn.Module())
    model.gsm.register_buffer("index", torch.zeros(2))  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"'gsm\.index'"):
        write_container(tmp_path / "a.gsm", specs(model), {"gsm.index": Dense(torch.zeros(2))})
    assert list(tmp_path.iterdir()) == []


def two_specs() -> tuple[TensorSpec, ...]:
    return specs(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)))


def test_what_trees_share_is_stored_once_and_still_shared(tmp_path: Path) -> None:
    table = Dense(torch.tensor([[0.5, -1.0]]))
    trees: dict[str, Encoding] = {
        n: Codebook(6, 6, torch.randint(2, (2, 3), dtype=torch.uint8), table) for n in ("0.weight", "1.weight")
    }
    write_container(tmp_path / "a.gsm", two_specs(), trees)
    container = read_container(tmp_path / "a.gsm", two_specs())
    first, second = container.trees["0.weight"], container.trees["1.weight"]
    assert first.at("/table") is second.at("/table")
    assert len(container.records) == 3


def test_references_by_name_are_resolved_when_written(tmp_path: Path) -> None:
    dense = Dense(torch.randn(2, 3))
    write_container(tmp_path / "a.gsm", two_specs(), {"0.weight": Ref("1.weight", (2, 3)), "1.weight": dense})
    again = read_container(tmp_path / "a.gsm", two_specs()).trees
    assert again["0.weight"] is again["1.weight"]
    with pytest.raises(CompositionError, match="'x'"):
        write_container(tmp_path / "b.gsm", two_specs(), {"0.weight": Ref("x", (2, 3)), "1.weight": dense})


def test_tied_tensors_are_one_and_the_network_must_tie_them_too(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    found = specs(tied)
    write_container(tmp_path / "a.gsm", found, {"0.weight": Dense(torch.randn(3, 3))})
    assert read_container(tmp_path / "a.gsm", found).specs[0].names == ("0.weight", "1.weight")
    apart = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    write_container(tmp_path / "b.gsm", specs(apart), {n: Dense(torch.randn(3, 3)) for n in ("0.weight", "1.weight")})
    with pytest.raises(FormatError, match="tied"):
        read_container(tmp_path / "b.gsm", found)


@pytest.mark.parametrize("make", [pruned_and_shared, shrunk_and_factorized], ids=lambda m: m.__name__)
def test_every_byte_belongs_to_a_leaf_the_index_or_the_header(make: object, tmp_path: Path) -> None:
    found, trees = make()  # type: ignore[operator]
    write_container(tmp_path / "a.gsm", found, trees, {"recipe": ["x"]})
    container = read_container(tmp_path / "a.gsm", found, measure_entropy=True)
    assert container.file_bytes == (tmp_path / "a.gsm").stat().st_size
    coded = sum(r.table + r.payload for r in container.records)
    assert coded + container.index_bytes + container.header_bytes == container.file_bytes
    assert container.notes == {"recipe": ["x"]}
    leaves = {id(leaf.tensor) for tree in container.trees.values() for leaf in tree.leaves()}
    assert len(container.records) == len(leaves)
    assert all(r.entropy >= 0 for r in container.records)


def test_a_copy_of_a_container_has_the_same_accounts(tmp_path: Path) -> None:
    write_container(tmp_path / "a.gsm", *pruned_and_shared())
    expected = read_container(tmp_path / "a.gsm", measure_entropy=True).records
    assert copy.deepcopy(read_container(tmp_path / "a.gsm", measure_entropy=True)).records == expected


def test_the_same_trees_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_container(tmp_path / name, *shrunk_and_factorized())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_was_read_can_be_written_again_to_the_same_bytes(tmp_path: Path) -> None:
    write_container(tmp_path / "a", *shrunk_and_factorized())
    container = read_container(tmp_path / "a")
    write_container(tmp_path / "b", container.specs, container.trees)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert same_trees(dict(container.trees), dict(read_container(tmp_path / "b").trees))


def test_a_hundred_layers_that_are_alike_stay_within_the_limit_of_the_index(tmp_path: Path) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(400)))
    trees: dict[str, Encoding] = {
        s.name: LowRank(Dense(torch.zeros(4, 1)), Dense(torch.zeros(1, 4)))
        if s.name.endswith("weight")
        else Dense(torch.zeros(4))
        for s in specs(model)
    }
    write_container(tmp_path / "a.gsm", specs(model), trees)
    assert len(read_container(tmp_path / "a.gsm", specs(model)).trees) == 800


def test_the_overhead_of_lenet_300_100_is_at_most_a_kilobyte(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    )
    recipe = [
        *(Magnitude(sparsity=0.95), KMeans(bits=4)),
        RoundToNearest(bits=8, group="tensor", only="*.bias"),
    ]
    state = run(net, recipe)
    write_container(tmp_path / "a.gsm", state.specs, state.trees)
    container = read_container(tmp_path / "a.gsm", state.specs)
    tables = sum(r.table for r in container.records)
    assert container.header_bytes + container.index_bytes + tables <= 1024
    assert container.file_bytes < 266_610 * 4 / 40


def mixed() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3).half(), nn.Embedding(9, 4).bfloat16())
    return {**tensors(model), "e": torch.zeros(0, 4), "ü": torch.tensor(True), "d": torch.zeros(2, dtype=torch.float64)}


def test_dense_file_bytes_is_what_the_library_writes(tmp_path: Path) -> None:
    dense = mixed()
    library = safetensors.torch.save(dense)
    assert dense_file_bytes(dense) == len(library)
    assert dense_file_bytes({n: t.to("meta") for n, t in dense.items()}) == len(library)
    assert write_safetensors(tmp_path / "a.safetensors", dense) == len(library)
    again = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert again.keys() == dense.keys()
    assert all(same_bits(again[n], t) for n, t in dense.items())


def test_files_that_are_not_there_or_not_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.gsm"):
        read_container(tmp_path / "none.gsm")
    with pytest.raises(DataError, match=str(tmp_path)):
        read_container(tmp_path)
    (tmp_path / "empty.gsm").write_bytes(b"")
    with pytest.raises(FormatError, match=r"empty\.gsm"):
        read_container(tmp_path / "empty.gsm")
    write_safetensors(tmp_path / "plain.safetensors", mixed())
    with pytest.raises(FormatError, match="seal"):
        read_container(tmp_path / "plain.safetensors")
    with pytest.raises(DataError, match="missing"):
        write_container(tmp_path / "missing" / "a.gsm", *pruned_and_shared())
