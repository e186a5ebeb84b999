"""`sensitivity`: what each layer alone costs; a table, a picture, JSON, and a recipe that divides a budget by it."""

from __future__ import annotations

import importlib
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast, final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from gossamer.cli.network import calling, factory_of, named_object
from gossamer.cli.output import table
from gossamer.drive.block_journal import sum_of_data, sum_of_trees
from gossamer.drive.progress import TerminalProgress
from gossamer.drive.recipe_file import dump_recipe
from gossamer.drive.source import ModelSource
from gossamer.errors import DataError, PlanError
from gossamer.methods.quantize.groups import Group
from gossamer.sensitivity.curve_journal import CurveJournal, sum_of_code
from gossamer.sensitivity.heat_map import heat_map, level_text, rise_text, shortened
from gossamer.sensitivity.judge import Distance
from gossamer.sensitivity.layer_curves import KINDS, LayerCurve, Sensitivities
from gossamer.sensitivity.measuring import measure_layers
from gossamer.sensitivity.probe import Kind, Probe, bits, ranks, sparsities
from gossamer.store.atomic import write_atomically
from gossamer.store.json_file import write_json
from gossamer.store.weights import load_weights_into

__all__ = ["Asked", "Given", "Wanted", "sensitivity_of"]

Loss = Callable[[Any, Any], Tensor]

_WINDOWS = 4  # of text in a batch
_CELL = 8  # columns of a terminal that a number takes
_UNITS = {
    "loss": "Rise of the loss",
    "kl": "KL divergence from dense outputs",
    "squares": "Relative squared error of outputs",
}


@final
@dataclass(frozen=True)
class Asked:
    """How to measure.

    Args:
        kinds: such as ``sparsity,bits``.
        levels: such as ``bits=2,3,4``; of a single kind the numbers alone.
        group: of rounding: "tensor", "channel" or a number.
        plain: factors by the weights alone.
        batches: of the data, from its start, to measure on.
        fitted: of the data after those, for statistics.
        only: patterns of tensor names.
        skip: patterns of tensor names.
        distance: "auto", "kl" or "squares".
    """

    kinds: str
    levels: tuple[str, ...]
    group: str
    plain: bool
    batches: int
    fitted: int
    only: tuple[str, ...]
    skip: tuple[str, ...]
    distance: str

    def probes(self) -> tuple[Probe, ...]:
        """What will be tried.

        Raises:
            PlanError: an unknown kind, or levels that make no sense.
        """
        for name, count in {"--batches": self.batches, "--fitted": self.fitted}.items():
            if count < 1:
                raise PlanError(f"{name}: found {count}, expected at least 1")
        if self.distance not in ("auto", "kl", "squares"):
            raise PlanError(f"--distance: found {self.distance!r}, expected auto, kl or squares")
        kinds = tuple(dict.fromkeys(_kind(name.strip(), "--kinds") for name in self.kinds.split(",") if name.strip()))
        if not kinds:
            raise PlanError(f"--kinds: found none, expected some of {', '.join(KINDS)}")
        levels: dict[Kind, list[float]] = {}
        for text in self.levels:
            name, named, numbers = text.rpartition("=")
            if not named and len(kinds) > 1:
                raise PlanError(f"--levels: found {text!r}, expected a kind before it, such as bits=2,3,4")
            kind = _kind(name.strip(), "--levels") if named else kinds[0]
            if kind not in kinds:
                raise PlanError(f"--levels: found {kind}, expected a kind of --kinds {self.kinds}")
            levels[kind] = sorted({_number(n, "--levels") for n in numbers.split(",")})
        group = cast(Group, int(self.group) if self.group.isdecimal() else self.group)
        made: dict[Kind, Probe] = {}
        for kind in kinds:
            given = levels.get(kind)
            if kind == "sparsity":
                made[kind] = sparsities(given) if given else sparsities()
            elif kind == "bits":
                whole = [int(level) if level.is_integer() else level for level in given or ()]
                made[kind] = bits(cast(Sequence[int], whole), group=group) if given else bits(group=group)
            else:
                made[kind] = ranks(given, whitened=not self.plain) if given else ranks(whitened=not self.plain)
        return tuple(made[kind] for kind in KINDS if kind in made)


@final
@dataclass(frozen=True)
class Given:
    """What to measure.

    Args:
        model: weights, a Hugging Face folder, or the JSON of an earlier run.
        network: factory name, or None.
        data: function name, or None.
        loss: function name, or None.
        calib: text, or None.
        window: tokens of a sample of text.
    """

    model: Path
    network: str | None
    data: str | None
    loss: str | None
    calib: Path | None
    window: int

    def load(self, batches: int, *, quiet: bool) -> tuple[nn.Module, list[Any], Loss | None]:
        """The network with its weights, its batches and the loss, if one is named.

        Raises:
            PlanError: things that do not go together.
            DataError: what cannot be read.
        """
        if (self.data is None) == (self.calib is None):
            found = "neither" if self.data is None else "both"
            raise PlanError(f"found {found} of --data and --calib, expected exactly one")
        loss = cast(Loss, named_object(self.loss, "--loss")) if self.loss is not None else None
        if loss is not None and not callable(loss):
            raise DataError(f"--loss {self.loss}: found {type(loss).__name__}, expected a function")
        if self.model.is_dir():
            return self._from_folder(batches, loss, quiet=quiet)
        if self.network is None or self.calib is not None:
            raise PlanError(f"{self.model}: found no --network with --data, expected both for a file of weights")
        model = load_weights_into(factory_of(self.network)(), self.model).eval()
        return model, self._batches(batches), loss

    def _from_folder(self, batches: int, loss: Loss | None, *, quiet: bool) -> tuple[nn.Module, list[Any], Loss | None]:
        from gossamer.huggingface import (
            causal,
            load_folder,
            next_token_loss,
            quiet_transformers,
            text_windows,
            with_targets,
        )

        if self.network is not None:
            raise PlanError(f"{self.model}: found --network beside a folder, expected a Hugging Face folder alone")
        data = (
            self._batches(batches)
            if self.calib is None
            else text_windows(self.model, self.calib, window=self.window, samples=_WINDOWS * batches)
        )
        if quiet:
            quiet_transformers()
        model = load_folder(self.model)
        if self.calib is not None and causal(model):
            return model, with_targets(data), loss or next_token_loss
        return model, data, loss

    def _batches(self, batches: int) -> list[Any]:
        function = named_object(str(self.data), "--data")
        with calling(str(self.data), "--data"):
            made = function() if callable(function) else function
            few = list(islice(cast(Iterable[Any], made), batches))
        if not few:
            raise DataError(f"--data {self.data}: found no batches, expected at least one")
        return few


@final
@dataclass(frozen=True)
class Wanted:
    """What to write.

    Args:
        picture: SVG file, or None.
        json_file: or None.
        recipe: YAML file, or None.
        budget: for the recipe, such as ``sparsity=0.9``.
        rows: of the table, per kind.
    """

    picture: Path | None
    json_file: Path | None
    recipe: Path | None
    budget: str | None
    rows: int

    def check(self, model: Path) -> tuple[Kind, float] | None:
        """Refuse what cannot be written to, before any work.

        Returns:
            The recipe's kind and budget.

        Raises:
            PlanError: a recipe without a budget, or the other way round.
            DataError: no such folder, the input file, or a file named twice.
        """
        if (self.recipe is None) != (self.budget is None):
            found = "--budget" if self.recipe is None else "--write-recipe"
            raise PlanError(f"found {found} alone, expected --budget and --write-recipe together")
        if self.rows < 1:
            raise PlanError(f"--rows: found {self.rows}, expected at least 1")
        files = [path for path in (self.picture, self.json_file, self.recipe) if path is not None]
        for i, path in enumerate(files):
            if path.resolve() == model.resolve():
                raise DataError(f"{path}: found the input file, expected another name: inputs are never overwritten")
            if path.resolve() in [other.resolve() for other in files[:i]]:
                raise DataError(f"{path}: found the same name twice, expected a file for each result")
        if self.budget is None:
            return None
        name, _, number = self.budget.partition("=")
        kind, budget = _kind(name.strip(), "--budget"), _number(number, "--budget")
        if kind != "bits" and budget >= 1:
            raise PlanError(f"--budget: found {kind}={number.strip()}, expected a share below 1, such as {kind}=0.9")
        return kind, budget

    @property
    def journal(self) -> Path | None:
        """Where finished layers are kept: beside the first result, or nowhere."""
        first = next((path for path in (self.picture, self.json_file, self.recipe) if path is not None), None)
        return None if first is None else first.with_name(first.name + ".journal")


def sensitivity_of(*, given: Given, asked: Asked, wanted: Wanted, resume: bool, quiet: bool, console: Console) -> None:
    """Measure, or read what was measured; print and write."""
    budget = wanted.check(given.model)
    extra: dict[str, Any] = {}
    if given.model.suffix == ".json":
        if resume or any((given.network, given.data, given.calib, given.loss)):
            what = "--network, --data, --calib, --loss or --resume"
            raise PlanError(f"{given.model}: found {what} beside what was measured, expected it alone")
        found = Sensitivities.read(given.model)
    else:
        probes = asked.probes()
        if budget is not None and budget[0] not in {probe.kind for probe in probes}:
            raise PlanError(f"--budget: found {budget[0]}, expected a kind of --kinds {asked.kinds}")
        if resume and wanted.journal is None:
            raise PlanError("--resume: found no file to write beside it, expected --output or --json as in that run")
        found, extra = _measured(given, asked, probes, wanted.journal, resume=resume, quiet=quiet, console=console)
    _write(found, extra, given.model, wanted, budget)  # first: what reads the table may stop reading
    _show(found, console, wanted.rows)
    if "resumed" in extra:
        console.print(f"{extra['resumed']} curves were finished before.")
    for path, what in ((wanted.picture, "the picture"), (wanted.recipe, "for gossamer compress --recipe")):
        if path is not None:
            console.print(f"{escape(str(path))}: {what}")


def _write(
    found: Sensitivities, extra: dict[str, Any], model: Path, wanted: Wanted, budget: tuple[Kind, float] | None
) -> None:
    if wanted.picture is not None:
        write_atomically(wanted.picture, [heat_map(found, model.name).encode()])
    write_json(wanted.json_file, {**found.to_json(), "file": str(model), **extra})
    journal = wanted.journal if model.suffix != ".json" else None
    if journal is not None and wanted.json_file is not None:  # has all: a budget that cannot be met costs nothing
        journal.unlink(missing_ok=True)
    if budget is not None and wanted.recipe is not None:
        write_atomically(wanted.recipe, [dump_recipe(found.recipe(*budget)).encode()])
    if journal is not None:
        journal.unlink(missing_ok=True)


def _measured(
    given: Given,
    asked: Asked,
    probes: Sequence[Probe],
    path: Path | None,
    *,
    resume: bool,
    quiet: bool,
    console: Console,
) -> tuple[Sensitivities, dict[str, Any]]:
    if path is not None and path.exists() and not resume:
        raise PlanError(f"{path}: found an unfinished run, expected none: add --resume, or delete it")
    model, data, loss = given.load(asked.batches + asked.fitted, quiet=quiet)
    journal = None if path is None else CurveJournal(path, _identity(given, asked, probes, model, data), resume=resume)
    began = time.monotonic()
    try:
        with TerminalProgress(enabled=False if quiet else None) as progress:
            found = measure_layers(
                model,
                data,
                probes,
                loss=loss,
                distance=cast(Distance, asked.distance),
                batches=asked.batches,
                fitted=asked.fitted,
                only=asked.only,
                skip=asked.skip,
                keeper=journal,
                progress=progress,
            )
    except KeyboardInterrupt:
        if path is not None and path.exists():
            console.print(f"{escape(str(path))}: what is finished is kept; the same command with --resume goes on")
        raise
    finally:
        if journal is not None:
            journal.close()
    resumed = {} if journal is None or not journal.resumed else {"resumed": journal.resumed}
    return found, {"batches": min(asked.batches, len(data)), "seconds": round(time.monotonic() - began, 1), **resumed}


def _identity(
    given: Given, asked: Asked, probes: Sequence[Probe], model: nn.Module, data: Sequence[Any]
) -> dict[str, str]:
    """What must be the same for a run to be gone on with: numbers by checksum, not files by name and time."""
    source = ModelSource(model)
    listed = source.specs()
    tried = [(p.kind, p.levels, repr(p.make(p.levels[0], (64, 64)))) for p in probes]
    return {
        "settings": repr((tried, asked.batches, asked.only, asked.skip, asked.distance, given.loss)),
        "network": f"{zlib.crc32(repr(model).encode()):08x}",
        "weights": sum_of_trees(listed, {spec.name: source.read(spec.name) for spec in listed}),
        "data": sum_of_data(data),
        "code": f"{sum_of_code()}{_sum_of_source(given.loss)}",
    }


def _sum_of_source(loss: str | None) -> str:
    """A checksum of the file that a loss is defined in, or of the one for text."""
    module = importlib.import_module(loss.partition(":")[0] if loss is not None else "gossamer.huggingface")
    file = getattr(module, "__file__", None)
    return f", loss {zlib.crc32(Path(file).read_bytes()):08x}" if file else ""


def _show(found: Sensitivities, console: Console, rows: int) -> None:
    base = f" (dense {found.base:.4g})" if found.metric == "loss" else ""
    title = f"{_UNITS[found.metric]}{base}, one layer alone compressed, worst first"
    fit = max(2, (console.width - 20) // _CELL)
    kept = {kind: _fitting(sorted({x for c in found.of(kind) for x, _ in c.points}), fit) for kind in found.kinds}
    columns = max(len(levels) for levels in kept.values())
    console.print(f"[bold]{title}[/bold]")
    made = table("", ["", *("" for _ in range(columns))], [])
    made.show_header, made.title = False, None
    room = max(16, console.width - _CELL * columns - 2)
    common = _common([c.name for c in found.curves], room)
    for kind in found.kinds:
        _section(made, kind, kept[kind], found.of(kind), columns, partial(_short, common, room), rows)
    console.print(made)
    if found.skipped:
        listed = [[name, why] for name, why in found.skipped.items()]
        more = [[f"and {len(listed) - 12} more", ""]] if len(listed) > 12 else []
        console.print(table("Not measured", ["tensor", "why"], listed[:12] + more, text_columns=2))


def _section(
    made: Table,
    kind: Kind,
    levels: Sequence[float],
    curves: Sequence[LayerCurve],
    columns: int,
    short: Callable[[str], str],
    rows: int,
) -> None:
    blank = [""] * (columns - len(levels))
    made.add_row(kind, *(level_text(kind, level) for level in levels), *blank, style="bold")
    ordered = sorted(curves, key=lambda curve: -curve.mean)
    for curve in ordered[:rows]:
        points = dict(curve.points)
        cells = (rise_text(points[level]) if level in points else "–" for level in levels)
        made.add_row(escape(short(curve.name)), *cells, *blank)
    if len(ordered) > rows:
        made.add_row(escape(f"and {len(ordered) - rows} less sensitive"), *[""] * columns)
    made.add_section()


def _common(names: Sequence[str], room: int) -> tuple[int, int]:
    """How many dotted parts all names begin and end with, which tell nothing apart, if some name is too long."""
    if len(set(names)) < 2 or max(map(len, names)) <= room:
        return 0, 0
    parts = [name.split(".") for name in names]
    begin = _alike(parts)
    return begin, _alike([part[begin:][::-1] for part in parts])


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many first members are the same in all, leaving at least one."""
    most = min(len(part) for part in parts) - 1
    return next((i for i in range(most) if len({part[i] for part in parts}) > 1), most)


def _short(common: tuple[int, int], room: int, name: str) -> str:
    parts = name.split(".")
    return shortened(".".join(parts[common[0] : len(parts) - common[1]]), room)


def _fitting(levels: Sequence[float], most: int) -> list[float]:
    """As many as fit, evenly spread, the first and the last among them."""
    if len(levels) <= most:
        return list(levels)
    return [levels[round(i * (len(levels) - 1) / (most - 1))] for i in range(most)]


def _kind(name: str, option: str) -> Kind:
    if name not in KINDS:
        raise PlanError(f"{option}: found {name!r}, expected some of {', '.join(KINDS)}")
    return name


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise PlanError(f"{option}: found {text.strip()!r}, expected a number") from error
    if not 0 < number < 100:
        raise PlanError(f"{option}: found {text.strip()!r}, expected a number above 0, such as 0.5, or 4 bits")
    return number
