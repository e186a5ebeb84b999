"""``gossamer demo | compress | inspect | decompress | pack | unpack | sensitivity | bench | report``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from gossamer.cli.network import Inputs
from gossamer.cli.recipes import Chosen, Preset
from gossamer.coding import Effort
from gossamer.errors import DataError, GossamerError, PlanError

__all__ = ["app", "run"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make PyTorch networks small and sparse, and measure what it brought from the reloaded file.",
)

_INTERRUPTED = 130
# What all complaints about options and arguments are, in Click as in Typer's own copy of it: neither name is public.
_UsageError: Any = typer.BadParameter.__base__


def _creatable(path: Path | None) -> Path | None:
    """What is to be written can be: said before hours of work, not after."""
    return _checked(path, folder_may_come=False)


def _creatable_later(path: Path | None) -> Path | None:
    """The same where the folder may be one that the command makes."""
    return _checked(path, folder_may_come=True)


def _checked(path: Path | None, *, folder_may_come: bool) -> Path | None:
    from gossamer.store.atomic import check_creatable

    if path is not None and (not folder_may_come or _is_folder(path.parent)):
        check_creatable(path)
    return path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # of asking, such as a name that is too long
        raise DataError(f"{path}: cannot write there: {error.strerror}") from error


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=_creatable, help="Also write the result as JSON."),
]
JsonBeside = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=_creatable_later, help="Also write the result as JSON."),
]
Network = Annotated[
    str | None, typer.Option("--network", "-n", metavar="PACKAGE.MODULE:FACTORY", help="Code that makes the network.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=1, help="That code pieces at the same time.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="Full Fashion-MNIST; without it a packaged subset.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Keep the files that were made.")] = None,
    json_file: JsonBeside = None,
    seed: Annotated[int, typer.Option(help="Of training.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Train two small networks, compress each with every family, reload, and show what it brought."""
    from gossamer.demo.run import run_demo

    run_demo(data=data, out=out, json_file=json_file, seed=seed, quiet=quiet, console=Console())


@app.command()
def compress(
    weights: Annotated[
        Path, typer.Argument(metavar="WEIGHTS", help=".safetensors, weights-only .pt, or a folder of shards")
    ],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", metavar="FILE", help="Recipe as YAML; or a preset.")
    ] = None,
    preset: Annotated[
        Preset | None,
        typer.Option("--preset", "-p", help="A recipe made for the network; tiny and fast train, so they need --data."),
    ] = None,
    network: Network = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=_creatable, help="The .gsm to write."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PACKAGE.MODULE:FUNCTION", help="Returns batches (inputs, targets), to tune."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (of a checkpoint: the estimate), write nothing.")
    ] = False,
    keep_plan: Annotated[bool, typer.Option("--keep-plan", help="Store recipe and plan in the file.")] = False,
    effort: Annotated[
        Effort,
        typer.Option("--effort", help="fast: written and read sooner, mostly a few per cent larger; same weights."),
    ] = "best",
    calib: Annotated[
        Path | None,
        typer.Option("--calib", metavar="TEXT", help="Text file or folder: WEIGHTS is a Hugging Face model folder."),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of a sample of --calib.")] = 512,
    samples: Annotated[int, typer.Option(help="Samples of --calib.")] = 128,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="DIR", help="With --calib: keep what is finished there.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed run over a checkpoint, or with one, stopped.")
    ] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Compress a network's weights with a recipe or a preset into one .gsm file.

    A folder of shards, or any safetensors file without --network, is read tensor by tensor and need not fit in memory;
    kinds of layers then come from --network, or from names and shapes. With --calib a local Hugging Face folder is
    calibrated on text.
    """
    chosen = Chosen(recipe, preset)
    if calib is not None:
        from gossamer.cli.huggingface import compress_folder

        if network is not None or data is not None or dry_run:
            raise PlanError("--calib: found --network, --data or --dry-run beside it, expected a model folder alone")
        compress_folder(
            folder=weights,
            chosen=chosen,
            calib=calib,
            window=window,
            samples=samples,
            output=output,
            checkpoint=checkpoint,
            resume=resume,
            keep_plan=keep_plan,
            effort=effort,
            json_file=json_file,
            quiet=quiet,
            console=Console(),
        )
        return
    if weights.is_dir() or network is None or resume:
        from gossamer.cli.stream import compress_checkpoint

        compress_checkpoint(
            checkpoint=weights,
            chosen=chosen,
            network=network,
            output=output,
            data=data,
            dry_run=dry_run,
            keep_plan=keep_plan,
            effort=effort,
            resume=resume,
            json_file=json_file,
            quiet=quiet,
            console=Console(),
        )
        return
    from gossamer.cli.commands import compress_file

    compress_file(
        weights=weights,
        chosen=chosen,
        network=network,
        output=output,
        data=data,
        dry_run=dry_run,
        keep_plan=keep_plan,
        effort=effort,
        json_file=json_file,
        quiet=quiet,
        console=Console(),
    )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gsm file.")],
    zstd: Annotated[bool, typer.Option(help="Compare with zstd -19 (about 3 MB/s).")] = True,
    json_file: JsonFile = None,
) -> None:
    """Show where every byte of a file went, and which did not shrink."""
    from gossamer.cli.commands import inspect_file

    inspect_file(file=file, zstd=zstd, json_file=json_file, console=Console())


@app.command()
def decompress(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gsm file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The .safetensors to write; with --hf a folder.")
    ],
    hf: Annotated[
        Path | None,
        typer.Option("--hf", metavar="DIR", help="Hugging Face folder that it was made of: write such a folder."),
    ] = None,
    json_file: JsonBeside = None,
) -> None:
    """Write the dense weights as an ordinary safetensors file; removed channels are zero."""
    if hf is not None:
        from gossamer.cli.huggingface import decompress_folder

        decompress_folder(file=file, like=hf, output=output, json_file=json_file, console=Console())
        return
    from gossamer.cli.commands import decompress_file

    decompress_file(file=file, output=output, json_file=json_file, console=Console())


@app.command()
def pack(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help=".safetensors, or a folder with some.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The packed file, or folder, to write.")],
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="BASE", help="What it was fine-tuned from: keep differences to that."),
    ] = None,
    verify: Annotated[bool, typer.Option(help="Decode everything again and compare before it is written.")] = True,
    resume: Resume = False,
    threads: Threads = 2,
    json_file: JsonBeside = None,
    quiet: Quiet = False,
) -> None:
    """Make a checkpoint smaller without changing a bit of it; unpack gives it back."""
    from gossamer.cli.pack import pack_checkpoint

    pack_checkpoint(
        source=checkpoint,
        out=out,
        reference=reference,
        verify=verify,
        resume=resume,
        threads=threads,
        json_file=json_file,
        quiet=quiet,
        console=Console(),
    )


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A packed file, or folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors, or folder, to write.")],
    reference: Annotated[
        Path | None, typer.Option("--reference", metavar="BASE", help="What was given when it was packed.")
    ] = None,
    resume: Resume = False,
    threads: Threads = 2,
    json_file: JsonBeside = None,
    quiet: Quiet = False,
) -> None:
    """Write the checkpoint that was packed, to the byte."""
    from gossamer.cli.pack import unpack_checkpoint

    unpack_checkpoint(
        source=file,
        out=out,
        reference=reference,
        resume=resume,
        threads=threads,
        json_file=json_file,
        quiet=quiet,
        console=Console(),
    )


@app.command()
def sensitivity(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help=".safetensors or weights-only .pt, a Hugging Face folder, or the .json of an earlier run.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="PACKAGE.MODULE:FUNCTION", help="Returns batches: (inputs, targets), or inputs alone."
        ),
    ] = None,
    network: Network = None,
    calib: Annotated[
        Path | None, typer.Option("--calib", metavar="TEXT", help="Instead of --data: text for a Hugging Face folder.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of a sample of --calib; a batch has four.")] = 512,
    kinds: Annotated[str, typer.Option(metavar="NAMES", help="Some of sparsity, bits, rank.")] = "sparsity,bits,rank",
    levels: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=NUMBERS", help="Such as bits=2,3,4; rank=0.25,0.5 is of the full rank."),
    ] = None,
    group: Annotated[str, typer.Option(help="Of rounding: channel, tensor, or weights per scale.")] = "channel",
    plain: Annotated[bool, typer.Option("--plain", help="Ranks by the weights alone, not by the inputs.")] = False,
    batches: Annotated[int, typer.Option(help="To measure on, from the start of the data.")] = 4,
    fitted: Annotated[int, typer.Option(help="Batches after those, for ranks by the inputs.")] = 16,
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Names of tensors to measure.")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Names of tensors to leave out.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(metavar="PACKAGE.MODULE:FUNCTION", help="Of outputs and targets; cross entropy without."),
    ] = None,
    distance: Annotated[
        str, typer.Option(help="Without targets: kl (of logits) or squares, to the dense network's outputs.")
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=_creatable, help="The .svg to write."),
    ] = None,
    write_recipe: Annotated[
        Path | None,
        typer.Option(
            "--write-recipe", metavar="FILE", callback=_creatable, help="A recipe that divides --budget by it."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="KIND=NUMBER", help="sparsity=0.9; bits=3.5 (a mean); rank=0.6 (numbers left)."),
    ] = None,
    rows: Annotated[int, typer.Option(help="Of the table, per kind.")] = 40,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed run stopped.")] = False,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure how much worse a network becomes as each layer alone is pruned, rounded or factorized.

    Finished layers are kept beside the first file that is written, until all are done.
    """
    from gossamer.cli.sensitivity import Asked, Given, Wanted, sensitivity_of

    only_these, without = tuple(only or ()), tuple(skip or ())
    sensitivity_of(
        given=Given(model, network, data, loss, calib, window),
        asked=Asked(kinds, tuple(levels or ()), group, plain, batches, fitted, only_these, without, distance),
        wanted=Wanted(output, json_file, write_recipe, budget, rows),
        resume=resume,
        quiet=quiet,
        console=Console(),
    )


@app.command()
def bench(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .gsm file.")],
    network: Annotated[str, typer.Option("--network", "-n", metavar="PACKAGE.MODULE:FACTORY", help="Its code.")],
    shape: Annotated[
        str | None, typer.Option("--shape", "-s", metavar="SIZES", help="One input of random numbers, such as 1,28,28.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option("--inputs", metavar="PACKAGE.MODULE:FUNCTION", help="Takes a batch size, returns inputs."),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Dense contenders: torch, onnxruntime, onnxruntime_int8, openvino, openvino_bf16, deepsparse.",
        ),
    ] = "torch",
    peers: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Environments of the contenders; without it, what is installed here."),
    ] = None,
    batch: Annotated[list[int] | None, typer.Option("--batch", "-b", help="Batch sizes; 1 and 16.")] = None,
    threads: Annotated[list[int] | None, typer.Option("--threads", "-t", help="Numbers; as torch has it.")] = None,
    seconds: Annotated[float, typer.Option(help="Of measuring per batch size and number of threads.")] = 2.0,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Measure size, latency, throughput and memory of a file, with dense networks beside it, all taking turns."""
    from gossamer.cli.bench import bench_file

    bench_file(
        file=file,
        network=network,
        inputs=Inputs(shape, inputs),
        against=against,
        peers=peers,
        batches=batch or [1, 16],
        threads=threads or [],
        seconds=seconds,
        json_file=json_file,
        quiet=quiet,
        console=Console(),
    )


@app.command()
def report(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help=".gsm files of one network.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", callback=_creatable, help="The .html to write.")
    ],
    network: Network = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PACKAGE.MODULE:FUNCTION", help="Returns test batches (inputs, targets)."),
    ] = None,
    train_data: Annotated[
        str | None,
        typer.Option(
            "--train-data", metavar="PACKAGE.MODULE:FUNCTION", help="The same of training, all that is to count."
        ),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            "--dense",
            metavar="WEIGHTS",
            help="Of the network before compression: .safetensors, weights-only .pt, or a Hugging Face folder.",
        ),
    ] = None,
    calib: Annotated[
        Path | None,
        typer.Option("--calib", metavar="TEXT", help="Instead of --data: text for a Hugging Face folder."),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens of an example of --calib.")] = 128,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Names of classes: cat,dog,… or a text file with one per line."),
    ] = None,
    examples: Annotated[int, typer.Option(help="Test examples to measure on.")] = 1000,
    quick: Annotated[
        bool, typer.Option("--quick/--thorough", help="Attacks to look with, or to publish figures by.")
    ] = True,
    attacks: Annotated[bool, typer.Option(help="Attack and corrupt images.")] = True,
    title: Annotated[str, typer.Option(help="Above the headline.")] = "",
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Write one page that shows what compression did: bytes, accuracy, time, robustness, what changed.

    The page is one file, works without a network, and has every number as a table. Without --network and --data it
    shows what the files say of themselves.
    """
    from gossamer.cli.report import Given, Sizes, report_files

    report_files(
        given=Given(tuple(files), network, data, train_data, dense, calib, window, classes),
        sizes=Sizes(examples, quick, attacks),
        output=output,
        title=title,
        json_file=json_file,
        quiet=quiet,
        console=Console(),
    )


def run(arguments: list[str] | None = None) -> None:
    """Entry point: bad input or usage is one line and exit code 2, an interruption 130, never a traceback."""
    code: object = None
    try:
        code = app(args=arguments, prog_name="gossamer", standalone_mode=False)
    except _UsageError as error:
        _fail(_misused(error), 2)
    except GossamerError as error:
        _fail(f"gossamer: {' '.join(str(error).split())}", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:  # the last resort of a command line; GOSSAMER_TRACEBACK=1 shows where it was
        if os.environ.get("GOSSAMER_TRACEBACK"):
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _fail(f"gossamer: unexpected {what} (GOSSAMER_TRACEBACK=1 shows where)", 1)
    if code == _INTERRUPTED:  # which is also what Typer makes of an interruption
        _fail("gossamer: interrupted; files that were there are as they were", _INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _misused(error: Any) -> str:
    """A line about options and arguments; none where Typer has shown the help instead."""
    said = " ".join(error.format_message().split()).rstrip(".")
    command = "gossamer" if error.ctx is None else error.ctx.command_path
    return f"gossamer: {said}; see {command} --help" if said else ""


def _fail(line: str, code: int) -> NoReturn:
    if line:
        sys.stderr.write(line + "\n")
    sys.exit(code)


if __name__ == "__main__":
    run()
