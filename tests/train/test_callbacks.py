"""The real trainers of Hugging Face and Lightning, if they are installed: stepping, and going on after a checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer.train as sparse
from gossamer.errors import DataError, PlanError
from gossamer.train.callbacks import hugging_face, lightning
from gossamer.train.from_dense import Feedback, live_masks, prepare

METHOD = sparse.RigL(sparsity=0.8, steps=40, every=4, fraction=0.3)
STEPS = 16

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="no transformers")
needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="no lightning")
pytestmark = pytest.mark.filterwarnings("ignore")  # other people's deprecations


def body(method: Any = METHOD) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 4))
    made = prepare(model, method) if isinstance(method, Feedback) else sparse.sparsify(model, method)
    assert isinstance(made, nn.Sequential)
    return made


def rows() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS * 8, 20, generator=random)
    return [{"x": row, "labels": row[:4].argmax()} for row in x]


def by_hand(batches: Sequence[int] = range(STEPS)) -> nn.Module:
    model = body()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    sparsifier = sparse.Sparsifier(model, optimizer, METHOD)
    listed = rows()
    for number in batches:
        some = listed[8 * number : 8 * number + 8]
        optimizer.zero_grad()
        F.cross_entropy(model(torch.stack([r["x"] for r in some])), torch.stack([r["labels"] for r in some])).backward()
        optimizer.step()
        sparsifier.step()
    return model


def same(a: nn.Module, b: nn.Module) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name
    assert not torch.equal(a.state_dict()["0.positions"], body().state_dict()["0.positions"])


class Classifier(nn.Module):
    def __init__(self, method: Any = METHOD) -> None:
        super().__init__()
        self.net = body(method)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.net(x)
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}


def hugging_face_run(folder: Path, method: Any = METHOD, **more: Any) -> tuple[Any, Classifier, Any]:
    import transformers

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_steps=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        train_sampling_strategy="sequential",
        optim="adamw_torch",
        **more,
    )
    model, callback = Classifier(method), hugging_face(method)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows(), callbacks=[callback])
    return trainer, model, callback


@needs_transformers
def test_hugging_faces_trainer_does_what_a_loop_by_hand_does(tmp_path: Path) -> None:
    trainer, model, callback = hugging_face_run(tmp_path)
    trainer.train()
    assert callback.sparsifier.steps == STEPS
    same(model.net, by_hand())


@needs_transformers
def test_hugging_faces_trainer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    trainer, model, _ = hugging_face_run(tmp_path)
    trainer.train()
    again, resumed, callback = hugging_face_run(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert callback.sparsifier.steps == STEPS
    same(resumed.net, model.net)


@needs_transformers
def test_methods_with_a_dense_phase_run_in_a_trainer_too(tmp_path: Path) -> None:
    from gossamer.methods.prune import Magnitude

    method = Feedback(prune=Magnitude(sparsity=0.75), every=4)
    trainer, model, callback = hugging_face_run(tmp_path, method)
    trainer.train()
    assert callback.sparsifier.done == STEPS
    assert [int(m.sum()) for m in live_masks(model).values()] == [160, 32]


def lightning_run(folder: Path, steps: int, resume: Path | None = None) -> tuple[nn.Module, Any, Path]:
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = body()

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch["x"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.0)

    module, callback = Module(), lightning(METHOD)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    loader = torch.utils.data.DataLoader(rows(), batch_size=8)  # type: ignore[arg-type]
    # The file is this test's own; Lightning stores more than tensors in it.
    trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume), weights_only=False)
    saved = folder / f"{steps}.ckpt"
    trainer.save_checkpoint(saved)
    return module.net, callback, saved


@needs_lightning
def test_lightnings_trainer_does_what_a_loop_by_hand_does(tmp_path: Path) -> None:
    net, callback, _ = lightning_run(tmp_path, STEPS)
    assert callback.sparsifier.steps == STEPS
    same(net, by_hand())


@needs_lightning
def test_lightnings_trainer_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    _, _, saved = lightning_run(tmp_path, 6)
    net, callback, _ = lightning_run(tmp_path, STEPS, saved)
    assert callback.sparsifier.steps == STEPS
    # Without a loader that has a state Lightning begins the epoch's batches anew.
    same(net, by_hand([*range(6), *range(STEPS - 6)]))


def test_what_is_no_method_is_refused_and_a_package_that_is_missing_is_named(monkeypatch: Any) -> None:
    with pytest.raises(PlanError, match="callback: found str"):
        hugging_face("rigl")  # type: ignore[arg-type]

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(DataError, match="found no package transformers"):
        hugging_face(METHOD)
    with pytest.raises(DataError, match=r"found no package lightning\.pytorch, expected pip install lightning"):
        lightning(METHOD)


def test_a_trainer_with_a_dense_network_is_refused() -> None:
    from gossamer.train.callbacks import _stepping

    model = nn.Linear(3, 3)
    with pytest.raises(PlanError, match=r"expected a network from gs\.train\.sparsify"):
        _stepping(METHOD, model, [torch.optim.SGD(model.parameters(), lr=0.1)])
