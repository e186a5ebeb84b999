"""Recipes of `benchmarks.pretrained`: their names, and the healing ones on small networks of the same architectures."""

from pathlib import Path

import pytest
import torch
from torch import nn

import gossamer as gs
from benchmarks.pretrained_settings import SETTINGS, Setting
from benchmarks.zoo.checkpoints import embedding_loss
from benchmarks.zoo.g2p import G2P, Spelled, spoken_loss
from benchmarks.zoo.minilm import MiniLM
from benchmarks.zoo.pretrained import PRETRAINED


def _best(network: str) -> Setting:
    return next(s for s in SETTINGS if (s.network, s.method) == (network, "best"))


def _tiny_minilm() -> nn.Module:
    return MiniLM(words=48, positions=8, layers=6, width=16, heads=2, inner=32)


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({s.key for s in SETTINGS}) == len(SETTINGS)
    assert {s.network for s in SETTINGS} <= PRETRAINED.keys()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_healing_recipe_of_minilm_leaves_a_fifth_of_its_layers_and_reads_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = _tiny_minilm().eval()
    with torch.no_grad():  # so that it attends: one threshold over all layers would take the whole of queries and keys
        for layer in network.encoder.layer:
            layer.attention.self.query.weight.mul_(8)
            layer.attention.self.key.weight.mul_(8)
    tokens = torch.stack([torch.randint(48, (192, 8)), torch.ones(192, 8, dtype=torch.long)], 1).int()
    with torch.no_grad():
        targets = network(tokens)
    data = list(zip(tokens.split(4), targets.split(4), strict=True))
    small = gs.compress(network, _best("minilm").recipe, data=data, loss=embedding_loss)
    small.save(tmp_path / "small.gsm")
    healed = gs.load(tmp_path / "small.gsm", into=_tiny_minilm).dense()
    layers = [m.weight for m in healed.encoder.modules() if isinstance(m, nn.Linear)]
    assert sum(int((w != 0).sum()) for w in layers) == pytest.approx(0.2 * sum(w.numel() for w in layers), rel=0.02)
    words = healed.embeddings.word_embeddings.weight
    assert all(len(row.unique()) <= 16 for row in words)
    with torch.no_grad():
        assert torch.equal(healed(tokens[:4]), small.dense()(tokens[:4]))


def test_the_healing_recipe_of_g2p_makes_embeddings_narrow_and_leaves_few_levels_per_row() -> None:
    torch.manual_seed(0)
    spoken = {"cat": [["K", "AE1", "T"]], "dogs": [["D", "AO1", "G", "Z"]]}
    data = list(Spelled(["cat", "dogs"], spoken, 2, 0))
    small = gs.compress(G2P(80).eval(), _best("g2p").recipe, data=data, loss=spoken_loss)
    healed = small.dense()
    assert healed.enc.weight_ih_l0.shape == (240, 29)
    assert healed.dec.weight_ih_l0.shape == (240, 74)
    assert all(len(row.unique()) <= 16 for row in healed.enc.weight_hh_l0)
    assert all(len(row.unique()) <= 32 for row in healed.enc.weight_ih_l0)


def test_batches_of_words_are_as_long_as_their_longest_word_or_pronunciation() -> None:
    spoken = {"cat": [["K", "AE1", "T"]], "a": [["AH0"]], "through": [["TH", "R", "UW1"]]}
    data = list(Spelled(list(spoken), spoken, 1, 0))
    assert sorted(inputs.shape[-1] for inputs, _ in data) == [2, 4, 8]
    assert all(inputs.shape[-1] == targets.shape[-1] for inputs, targets in data)
