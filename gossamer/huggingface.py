"""Local Hugging Face model folders: the network, text for calibration, and a folder again. Needs the extra ``[hf]``.

Nothing is downloaded, and no code from a folder is run.
"""

from __future__ import annotations

import importlib
import json
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gossamer.errors import DataError

__all__ = [
    "causal",
    "factory",
    "load_folder",
    "next_token_loss",
    "next_tokens",
    "quiet_transformers",
    "save_folder",
    "text_windows",
    "vocabulary",
    "with_targets",
]

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
_BATCH = 4  # windows at a time


def factory(folder: str | Path) -> Callable[[], nn.Module]:
    """What makes the network of a folder, without its weights, for ``gossamer.load(…, into=factory(folder))``.

    Parameters have the type that config.json names, float32 if none.

    Raises:
        DataError: no model folder, or an architecture that transformers does not have.
    """
    config, kind = _config(Path(folder))

    named = getattr(config, "dtype", None)
    dtype = named if isinstance(named, torch.dtype) and named.is_floating_point else torch.float32

    def make() -> nn.Module:
        made = cast(nn.Module, kind(config))  # not every initialisation knows half precision
        for parameter in made.parameters():
            parameter.data = parameter.data.to(dtype)
        return made.eval()

    return make


def load_folder(folder: str | Path) -> nn.Module:
    """The network of a folder with its weights, in eval mode and without a cache of keys and values.

    Args:
        folder: with config.json and safetensors.

    Raises:
        DataError: no such folder, no safetensors, or an architecture that transformers does not have.
    """
    folder = Path(folder)
    _, kind = _config(folder)
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: found no .safetensors file, expected weights in that format: pickles are not read")
    try:
        network = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
        )
    except Exception as error:  # transformers raises whatever it raises
        raise DataError(f"{folder}: cannot be loaded: {_line(error)}") from error
    if hasattr(network.config, "use_cache"):
        network.config.use_cache = False
    return cast(nn.Module, network.eval())


def causal(network: nn.Module) -> bool:
    """Whether it predicts the next token."""
    return type(network).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def next_token_loss(outputs: Any, ids: Tensor) -> Tensor:
    """Mean cross entropy of every token but the first, from what the network returns for [n, t] tokens."""
    logits: Tensor = outputs.logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


def quiet_transformers() -> None:
    """No progress bars of transformers from now on, in this process."""
    _transformers().utils.logging.disable_progress_bar()


def text_windows(
    folder: str | Path, text: str | Path, *, window: int = 512, samples: int = 128, targets: bool = False
) -> list[Any]:
    """Windows of tokens, evenly spread over a text, in batches of four.

    Args:
        folder: with the tokenizer.
        text: a file, or a folder whose ``.txt`` files are read in the order of their names.
        window: tokens, special ones included; a model that takes fewer has fewer.
        samples: windows, at most.
        targets: pairs (inputs, tokens), for methods that need gradients of `next_token_loss`.

    Returns:
        Mappings of "input_ids" and "attention_mask", int64 [4, window].

    Raises:
        DataError: no text, too little for one window, or no tokenizer.
    """
    folder, text = Path(folder), Path(text)
    config, _ = _config(folder)
    limit = getattr(config, "max_position_embeddings", None)
    window = min(window, int(limit)) if isinstance(limit, int) and limit > 0 else window
    if window < 2 or samples < 1:
        raise DataError(f"found a window of {window} tokens and {samples} samples, expected at least 2 and 1")
    files = sorted(text.rglob("*.txt")) if text.is_dir() else [text]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{text}: found no text, expected a file, or a folder of .txt files")
    tokenizer = _tokenizer(folder)
    windows: list[list[int]] = []
    for file in files:
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as text: {_line(error)}") from error
        found = tokenizer(content, truncation=True, max_length=window, return_overflowing_tokens=True)["input_ids"]
        rows = found if found and isinstance(found[0], list) else [found]
        windows += [row for row in rows if len(row) == window]
    if not windows:
        raise DataError(f"{text}: found less than one window of {window} tokens, expected more text")
    count = min(samples, len(windows))
    chosen = [windows[i * len(windows) // count] for i in range(count)]
    ids = torch.tensor(chosen)
    batches: list[Any] = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(ids, _BATCH)
    ]
    return with_targets(batches) if targets else batches


def with_targets(batches: Sequence[Any]) -> list[Any]:
    """(inputs, tokens) of batches of text, for `next_token_loss`."""
    return [(batch, batch["input_ids"]) for batch in batches]


def next_tokens(
    folder: str | Path, text: str | Path, *, window: int = 128, samples: int = 128
) -> list[tuple[Tensor, Tensor]]:
    """Windows of tokens with the token that follows each, in batches of four.

    Args:
        folder: with the tokenizer.
        text: as of `text_windows`.
        window: positions of a sample.
        samples: at most.

    Returns:
        (inputs, targets), int64 [4, window] each: targets[:, t] follows inputs[:, t].

    Raises:
        DataError: as `text_windows`.
    """
    found = text_windows(folder, text, window=window + 1, samples=samples)
    return [(batch["input_ids"][:, :-1], batch["input_ids"][:, 1:]) for batch in found]


def vocabulary(folder: str | Path) -> list[str]:
    """What each token stands for in a text, by number.

    Raises:
        DataError: no tokenizer that can be loaded.
    """
    tokenizer = _tokenizer(Path(folder))
    return [str(tokenizer.decode([number])) for number in range(len(tokenizer))]


def _tokenizer(folder: Path) -> Any:
    try:
        return _transformers().AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever it raises
        raise DataError(f"{folder}: found no tokenizer that can be loaded: {_line(error)}") from error


def save_folder(network: nn.Module, like: str | Path, out: str | Path) -> int:
    """Write a folder that ``from_pretrained`` loads: the network's dense weights, the other files as they were.

    Args:
        network: of the architecture of ``like``.
        like: the folder that it comes from.
        out: a folder that is not there yet, or is empty.

    Returns:
        Bytes of weights.

    Raises:
        DataError: a folder with something in it, or one that cannot be written.

    Exact: written beside and renamed; what is interrupted leaves nothing.
    """
    like, out = Path(like), Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: found something there, expected a new or empty folder: nothing is overwritten")
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        cast(Any, network).save_pretrained(str(part), safe_serialization=True)
        for file in like.iterdir():
            as_it_was = file.name == "generation_config.json" or not (part / file.name).exists()
            if file.is_file() and not file.name.endswith(_WEIGHTS) and as_it_was:
                shutil.copyfile(file, part / file.name)
        _publish(part, out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {_line(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sum(file.stat().st_size for file in out.glob("*.safetensors"))


def _publish(part: Path, out: Path) -> None:
    """Rename a finished folder; into a folder that cannot be replaced, such as a mount, its files one by one."""
    try:
        part.replace(out)
    except OSError:
        if not out.is_dir():
            raise
        for file in part.iterdir():
            shutil.move(file, out / file.name)


def _config(folder: Path) -> tuple[Any, Any]:
    """Configuration and class of a folder's network."""
    try:
        written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: found no config.json that can be read, expected a local model folder") from error
    library = _transformers()
    named = written.get("architectures") if isinstance(written, dict) else None
    name = str(named[0]) if isinstance(named, Sequence) and not isinstance(named, str) and named else ""
    kind = getattr(library, name, None) if name.isidentifier() else None
    if not (isinstance(kind, type) and issubclass(kind, library.PreTrainedModel)):
        raise DataError(
            f"{folder}: found architecture {name[:60]!r}, expected one of transformers {library.__version__}: code "
            "that comes with a model is not run"
        )
    try:
        config = library.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever it raises
        raise DataError(f"{folder}: config.json cannot be used: {_line(error)}") from error
    return config, kind


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise DataError(
            "found no transformers, expected pip install 'gossamer[hf]' for Hugging Face folders"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
