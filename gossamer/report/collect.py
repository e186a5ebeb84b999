"""From files, code and data to a report: read every file, run every network, write down what was found."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from gossamer.drive.progress import NoProgress, Progress
from gossamer.errors import DataError, PlanError
from gossamer.measure.finite import check_finite
from gossamer.measure.modes import evaluating
from gossamer.report.layers import dense_layers, layers_of
from gossamer.report.learned import Names
from gossamer.report.machine import machine
from gossamer.report.measuring import (
    Bench,
    Effort,
    accuracy_of,
    changes_of,
    corruptions_of,
    generalisation_of,
    latency_of,
    lengths_of,
    robustness_of,
    words_seen,
)
from gossamer.report.report import Report
from gossamer.report.samples import Logits, gathered
from gossamer.report.subjects import DenseSubject, Network, Subject, distinct_names, read_subject
from gossamer.store.weights import dense_bytes_of

__all__ = ["report_of"]

Data = tuple[Tensor, Tensor] | Iterable[Any]
Part = Callable[[Callable[[str, int, int], None]], dict[str, Any]]

_MASKS = 60  # pictures over all files
_VOCABULARY = 1000  # names from which on only those that occur are kept
_STEP = 100


def report_of(
    files: Sequence[str | Path],
    *,
    network: Network | None = None,
    data: Data | None = None,
    train_data: Data | None = None,
    dense: nn.Module | None = None,
    classes: Names = (),
    examples: int = 1000,
    effort: Effort | None = None,
    title: str = "",
    progress: Progress | None = None,
) -> Report:
    """Measure files beside each other and beside the dense network.

    Args:
        files: ``.gsm`` of one network, in the order to show them.
        network: factory or module of the architecture; None: only what files say of themselves is reported.
        data: test samples, a pair (inputs, targets) or batches of such pairs; the first ``examples`` are measured on.
            Inputs [n, …], targets int64 [n]; of language models tokens [n, positions] and the next token of each.
            If there are more, as many again serve for one temperature (calibration), nothing else.
        train_data: the same of training, all of it, for the gap between both and for description length.
        dense: the network before compression, with its weights.
        classes: names of classes, one for each output, or of tokens.
        examples: test samples, at most.
        effort: how much is tried; None: `Effort`, which is quick.
        title: above the headline.
        progress: where to report.

    Returns:
        The report.

    Raises:
        DataError: files or data that are missing or do not fit.
        FormatError: a damaged file.
        PlanError: things that do not go together.

    Cost: of each network a few passes over the samples, and the attacks, which take most of it. Files and networks are
    not changed.

    Example:
        >>> import tempfile
        >>> import gossamer as gs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = gs.compress(nn.Linear(64, 64), [gs.prune.Magnitude(sparsity=0.9)]).save(folder + "/net.gsm")
        ...     report_of([folder + "/net.gsm"]).headline.startswith("net.gsm: 8.")
        True
    """
    if not files:
        raise PlanError("files: found none, expected at least one .gsm file")
    if examples < 1:
        raise PlanError(f"examples: found {examples}, expected at least 1")
    if network is None and (data is not None or dense is not None):
        raise PlanError("network: found none beside data or dense weights, expected the code of the network")
    for name, weight in dense.named_parameters() if dense is not None else ():
        if weight.dtype.itemsize > 1:  # which PyTorch cannot ask
            check_finite(weight.detach(), f"dense network: {name}")
    with evaluating(dense):
        collector = _Collector.of(files, network, data, train_data, dense, classes, examples, effort or Effort())
        return Report(collector.run(title or _title(files), progress or NoProgress()))


def _title(files: Sequence[str | Path]) -> str:
    return "Compressed network" if len(files) == 1 else f"{len(files)} compressed networks"


@final
@dataclass
class _Collector:
    """Runs all parts of all files and knows how far it is."""

    paths: list[Path]
    names: list[str]
    network: Network | None
    bench: Bench
    missing: dict[str, str] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        files: Sequence[str | Path],
        network: Network | None,
        data: Data | None,
        train_data: Data | None,
        dense: nn.Module | None,
        classes: Names,
        examples: int,
        effort: Effort,
    ) -> _Collector:
        """With the data read."""
        paths = [Path(file) for file in files]
        for path in paths:
            if not path.is_file():
                raise DataError(f"{path}: found no such file, expected a .gsm file")
        whole = None if data is None else gathered(data, 2 * examples, "data")
        test = None if whole is None else whole.first(examples)
        fitted = whole.after(examples) if whole is not None and len(whole) > examples else None
        train = None if train_data is None else gathered(train_data, None, "train data")
        bench = Bench(test, train, fitted, None, effort, classes)
        if dense is not None:
            held = DenseSubject(dense, bench.remembering(Logits(dense).eval()), dense_bytes_of(dense))
            bench = replace(bench, dense=held)
        return cls(paths, distinct_names(paths), network, bench)

    def run(self, title: str, progress: Progress) -> dict[str, Any]:
        """The document."""
        self._explain_what_is_missing()
        everyone = len(self.paths) + (self.bench.dense is not None)
        count = 0

        def told(share: float) -> None:
            progress.update(f"measuring {everyone} networks", round(_STEP * (count + share)), _STEP * everyone)

        if self.bench.dense is not None:
            self.entries.append(self._dense_entry(self.bench.dense, told))
            count += 1
        for path, name in zip(self.paths, self.names, strict=True):
            told(0.0)
            self.entries.append(self._entry(read_subject(path, name, self.network), told))
            count += 1
        _time_dense(self.entries)
        return self._document(title)

    def _document(self, title: str) -> dict[str, Any]:
        test, classes = self.bench.test, self.bench.classes
        listed: Any = list(classes) if not isinstance(classes, dict) else classes
        if len(classes) > _VOCABULARY:
            rows = [row for e in self.entries if e["changed"] for row in e["changed"]["rows"]]
            listed = {str(number): word for number, word in words_seen(rows, classes).items()}
        shape = "" if test is None else "×".join(str(s) for s in test.inputs.shape[1:])
        return {
            "version": 1,
            "title": title,
            "machine": machine(),
            "measured": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "data": {"examples": 0 if test is None else len(test), "shape": shape, "classes": listed},
            "settings": self._settings(),
            "missing": self.missing,
            "files": self.entries,
        }

    def _settings(self) -> dict[str, str]:
        bench, found = self.bench, {}
        if bench.train is not None:
            found["Training examples"] = f"{len(bench.train):,}"
        if bench.fitted is not None:
            found["Temperature"] = f"fitted on {len(bench.fitted):,} other examples"
        if bench.images and bench.effort.attacks:
            names = ", ".join(attack.name for attack in bench.effort.attacks)
            found["Attacks"] = f"{names}; L∞, {min(bench.effort.attacked, len(bench.test or ()))} examples"
        if bench.images and bench.effort.corrupted:
            found["Corruptions"] = f"{min(bench.effort.corrupted, len(bench.test or ()))} examples"
        if any(entry["latency"] for entry in self.entries):
            found["Time"] = "of one example, the lowered network and the dense one taking turns"
        return found

    def _explain_what_is_missing(self) -> None:
        bench = self.bench
        if self.network is None:
            self.missing["Accuracy, time, robustness"] = "needs the network's code (--network) and data (--data)"
            return
        if bench.test is None:
            self.missing["Accuracy, time, robustness"] = "needs test samples (--data)"
        if bench.dense is None:
            self.missing["The dense network"] = "needs its weights (--dense)"
        if bench.test is not None and bench.train is None:
            self.missing["Training against test, calibration, classes"] = "needs samples of training (--train-data)"
        if bench.test is not None and not bench.images:
            self.missing["Attacks and corruptions"] = "inputs are no images"
        elif bench.test is not None and not bench.effort.attacks:
            self.missing["Attacks and corruptions"] = "not asked for"

    def _dense_entry(self, dense: DenseSubject, told: Callable[[float], None]) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "name": dense.name,
            "path_name": dense.name,
            "dense": True,
            "file_bytes": dense.size,
            "dense_bytes": dense.size,
            "ratio": 1.0,
            "layers": dense_layers(dense.module),
            **_nothing(),
        }
        self._measure(entry, _behaviour(self.bench, dense.network, is_dense=True), told)
        return entry

    def _entry(self, subject: Subject, told: Callable[[float], None]) -> dict[str, Any]:
        bench = self.bench
        few = max(1, _MASKS // max(10, len(self.paths)))
        sample = tuple(bench.test.inputs.shape[1:]) if bench.images and bench.test is not None else None
        ledger = subject.ledger
        entry: dict[str, Any] = {
            "name": subject.name,
            "path_name": subject.path.name,
            "dense": False,
            "file_bytes": ledger.file_bytes,
            "dense_bytes": ledger.dense_bytes,
            "ratio": ledger.ratio,
            "free": list(ledger.free),
            "layers": layers_of(subject.container, ledger, pictures=few, pixels=64, sample=sample),
            **_nothing(),
        }
        if subject.network is None or bench.test is None:
            return entry
        network = bench.remembering(subject.network)
        parts = [*_behaviour(bench, network, is_dense=False), *_own(bench, subject, network)]
        self._measure(entry, parts, told)
        return entry

    def _measure(
        self, entry: dict[str, Any], parts: Sequence[tuple[str, float, Part]], told: Callable[[float], None]
    ) -> None:
        whole = sum(weight for _, weight, _ in parts)
        done = 0.0
        for _, weight, part in parts:
            told(done / whole)
            before = done

            def inside(_: str, at: int, total: int, start: float = before, width: float = weight) -> None:
                told((start + width * at / max(1, total)) / whole)

            try:
                entry |= part(inside)
            except (DataError, PlanError) as error:
                raise type(error)(f"{entry['path_name']}: {error}") from error
            done += weight


def _time_dense(entries: list[dict[str, Any]]) -> None:
    """The dense network's time, which was taken beside every file: the middle one of those."""
    taken = sorted((e["latency"] for e in entries if e["latency"]), key=lambda taken: taken["dense_milliseconds"])
    if taken and entries[0]["dense"]:
        middle = taken[len(taken) // 2]
        time = middle["dense_milliseconds"]
        first = {"milliseconds": time, "low": middle["dense_low"], "high": middle["dense_high"]}
        entries[0]["latency"] = {**first, "dense_milliseconds": time}


def _nothing() -> dict[str, Any]:
    keys = ("accuracy", "latency", "kernels", "description_length", "generalisation", "robustness", "corruptions")
    return {**dict.fromkeys((*keys, "changed")), "seen": {}}


def _behaviour(bench: Bench, network: nn.Module, *, is_dense: bool) -> list[tuple[str, float, Part]]:
    """What is measured of every network: name, weight in time, function."""
    parts: list[tuple[str, float, Part]] = []
    if bench.test is None:
        return parts
    parts.append(("accuracy", 1.0, lambda _: {"accuracy": accuracy_of(bench, network)}))
    if bench.train is not None:
        parts.append(
            ("generalisation", 2.0, lambda _: {"generalisation": generalisation_of(bench, network, is_dense=is_dense)})
        )
    if bench.images and not bench.test.positions:
        if bench.effort.attacks:
            parts.append(
                (
                    "attacks",
                    30.0,
                    lambda told: {"robustness": robustness_of(bench, network, is_dense=is_dense, told=told)},
                )
            )
        if bench.effort.corrupted:
            parts.append(("corruptions", 10.0, lambda told: {"corruptions": corruptions_of(bench, network, told)}))
    return parts


def _own(bench: Bench, subject: Subject, network: nn.Module) -> list[tuple[str, float, Part]]:
    """What is measured of files alone."""

    def times(_: object) -> dict[str, Any]:
        latency, kernels = latency_of(bench, subject)
        return {"latency": latency, "kernels": kernels}

    def changes(_: object) -> dict[str, Any]:
        found, seen = changes_of(bench, network)
        return {"changed": found, "seen": seen}

    def lengths(_: object) -> dict[str, Any]:
        return {"description_length": lengths_of(bench, subject.path, network)}

    parts: list[tuple[str, float, Part]] = [("time", 3.0, times), ("description length", 2.0, lengths)]
    if bench.dense is not None:
        parts.append(("changes", 2.0, changes))
    return parts
