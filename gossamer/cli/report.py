"""`report`: files, code and data in, one page out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from gossamer.cli.network import calling, factory_of, named_object
from gossamer.cli.output import size
from gossamer.drive.progress import TerminalProgress
from gossamer.errors import DataError, PlanError
from gossamer.report import Effort, report_of
from gossamer.report.samples import gathered
from gossamer.report.svg import clean
from gossamer.store.json_file import write_json
from gossamer.store.weights import load_weights_into

__all__ = ["Given", "Sizes", "report_files"]

_NAMES = 1 << 20  # bytes of a file of names


@final
@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        examples: of the test set.
        quick: attacks to look with.
        attacks: whether there are any.
    """

    examples: int
    quick: bool
    attacks: bool

    def effort(self) -> Effort:
        """As the report takes it."""
        if not self.attacks:
            return Effort.unattacked()
        return Effort() if self.quick else Effort.thorough()


@final
@dataclass(frozen=True)
class Given:
    """What to report on.

    Args:
        files: ``.gsm``.
        network: factory name, or None.
        data: function name, or None.
        train_data: function name, or None.
        dense: weights, a Hugging Face folder, or None.
        calib: text, or None.
        window: tokens of an example of text.
        classes: names, a file of names, or None.
    """

    files: tuple[Path, ...]
    network: str | None
    data: str | None
    train_data: str | None
    dense: Path | None
    calib: Path | None
    window: int
    classes: str | None

    def check(self, outputs: Sequence[Path | None]) -> None:
        """Refuse what makes no sense, before any work.

        Raises:
            PlanError: things that do not go together.
            DataError: files that are not there, or outputs that are inputs.
        """
        folder = self.dense is not None and self.dense.is_dir()
        if folder and self.network is not None:
            raise PlanError(f"{self.dense}: found --network beside a Hugging Face folder, expected the folder alone")
        if self.network is None and not folder and (self.data or self.train_data or self.dense):
            raise PlanError("found --data, --train-data or --dense without --network, expected the network's code")
        if self.calib is not None and (not folder or self.data is not None):
            raise PlanError(
                "--calib: found no Hugging Face folder as --dense, or --data beside it, expected text alone"
            )
        if self.train_data is not None and self.data is None:
            raise PlanError("--train-data: found no --data beside it, expected test samples too")
        inputs = [p.resolve() for p in (*self.files, self.dense) if p is not None]
        written = [p for p in outputs if p is not None]
        for i, path in enumerate(written):
            if path.resolve() in inputs:
                raise DataError(f"{path}: found an input file, expected another name: inputs are never overwritten")
            if path.resolve() in [other.resolve() for other in written[:i]]:
                raise DataError(f"{path}: found the same name twice, expected a file for each result")

    def names(self) -> list[str]:
        """Of the classes.

        Raises:
            DataError: a file that cannot be read as text.
        """
        if self.classes is None:
            return []
        path = Path(self.classes)
        if "," not in self.classes and path.is_file():
            try:
                with path.open(encoding="utf-8") as file:
                    return file.read(_NAMES).splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path}: cannot be read as text: {str(error)[:100]}") from error
        if "," not in self.classes:
            raise DataError(f"--classes: found no file {self.classes!r}, expected one, or names with commas")
        return [name.strip() for name in self.classes.split(",")]


def report_files(
    *,
    given: Given,
    sizes: Sizes,
    output: Path,
    title: str,
    json_file: Path | None,
    quiet: bool,
    console: Console,
) -> None:
    """Measure and write the page."""
    given.check((output, json_file))
    factory, dense, data, names = _loaded(given, sizes.examples, quiet=quiet)
    train = _samples(given.train_data, "--train-data", None)
    with TerminalProgress(enabled=False if quiet else None) as progress:
        found = report_of(
            given.files,
            network=factory,
            data=data,
            train_data=train,
            dense=dense,
            classes=names,
            examples=sizes.examples,
            effort=sizes.effort(),
            title=title,
            progress=progress,
        )
    written = found.save(output)
    write_json(json_file, found.to_json())
    console.print(escape(clean(found.headline)))  # a name may hold what a terminal would obey
    console.print(f"{escape(clean(str(output)))}: {size(written)} bytes; open it in any browser")


Loaded = tuple[Callable[[], nn.Module] | None, nn.Module | None, Any, list[str]]


def _loaded(given: Given, examples: int, *, quiet: bool) -> Loaded:
    """The code, the dense network, the test batches and the names of classes."""
    if given.dense is not None and given.dense.is_dir():
        return _from_folder(given, given.dense, examples, quiet=quiet)
    factory = None if given.network is None else factory_of(given.network)
    dense = None
    if factory is not None and given.dense is not None:
        dense = load_weights_into(factory(), given.dense).eval()
    return factory, dense, _samples(given.data, "--data", 2 * examples), given.names()


def _from_folder(given: Given, folder: Path, examples: int, *, quiet: bool) -> Loaded:
    from gossamer.huggingface import factory, load_folder, next_tokens, quiet_transformers, vocabulary

    if quiet:
        quiet_transformers()
    dense = load_folder(folder)
    if given.calib is None:
        return factory(folder), dense, _samples(given.data, "--data", 2 * examples), given.names()
    data = next_tokens(folder, given.calib, window=given.window, samples=examples)
    return factory(folder), dense, data, given.names() or vocabulary(folder)


def _samples(name: str | None, option: str, most: int | None) -> tuple[Tensor, Tensor] | None:
    """What the user's function returns, read here: batches may be made, and fail, one after the other."""
    if name is None:
        return None
    function = named_object(name, option)
    with calling(name, option):
        return gathered(function() if callable(function) else function, most, f"{option} {name}").pair
