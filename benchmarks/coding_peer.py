"""Other coders, on demand: ``PYTHON coding_peer.py FOLDER``, with the Python of their environment.

Every line on standard input is a JSON object that says what to do, answered by one line of JSON. Arrays come and go as
files of FOLDER. One core; waits without using it. Imports nothing of Gossamer.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class _Blank(types.ModuleType):
    """Stands where a module is imported that is never used: torchvision and ptflops, by nncodec."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Blank(f"{self.__name__}.{name}")
        made.__path__ = []
        sys.modules[made.__name__] = made
        return made

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (object,)


class _Blanks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".", maxsplit=1)[0] in ("torchvision", "ptflops"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        made = _Blank(spec.name)
        made.__path__ = []
        return made

    def exec_module(self, module: Any) -> None:
        del module


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made


def tensors(folder: Path, names: Sequence[str]) -> list[bytes]:
    """The bytes of arrays."""
    return [np.load(folder / f"{name}.npy").tobytes() for name in names]


_KEPT: dict[str, Any] = {}  # what a command loaded, for the repetitions that follow


def lossless(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """One repetition of a lossless coder over the arrays of one file, tensor by tensor or all in one."""
    coder, itemsize = asked["coder"], int(asked["itemsize"])
    key = f"{asked['file']}-{asked['whole']}"
    if key not in _KEPT:
        _KEPT.clear()
        with np.load(folder / asked["file"]) as stored:
            parts = [stored[name].tobytes() for name in stored.files]
        _KEPT[key] = [b"".join(parts)] if asked["whole"] else parts
    parts = _KEPT[key]
    if coder == "zipnn":
        library = importlib.import_module("zipnn")
        made = library.ZipNN(input_format="byte", bytearray_dtype=asked["dtype"], threads=1)
        rooms = [bytearray(part) for part in parts]  # its input may be overwritten
        seconds, coded = timed(lambda: [made.compress(room) for room in rooms])
        back, again = timed(lambda: [made.decompress(part) for part in coded])
    elif coder == "zstd-19":
        library = importlib.import_module("zstandard")
        packer, unpacker = library.ZstdCompressor(level=19), library.ZstdDecompressor()

        def shuffled(part: bytes) -> bytes:
            return np.frombuffer(part, np.uint8).reshape(-1, itemsize).T.tobytes()

        def straight(part: bytes) -> bytes:
            return np.frombuffer(part, np.uint8).reshape(itemsize, -1).T.tobytes()

        seconds, coded = timed(lambda: [packer.compress(shuffled(part)) for part in parts])
        back, again = timed(lambda: [straight(unpacker.decompress(part)) for part in coded])
    else:
        library = importlib.import_module("blosc2")
        settings = {"clevel": 9, "filter": library.Filter.SHUFFLE, "codec": library.Codec.ZSTD, "typesize": itemsize}
        library.set_nthreads(1)
        seconds, coded = timed(lambda: [library.compress(part, **settings) for part in parts])
        back, again = timed(lambda: [library.decompress(part) for part in coded])
    assert all(bytes(a) == b for a, b in zip(again, parts, strict=True)), coder
    return {"bytes": sum(map(len, coded)), "encode_s": seconds, "decode_s": back}


def constriction_symbols(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """One repetition of constriction's static ANS over symbols, each leaf under its own frequencies."""
    library = importlib.import_module("constriction")
    if asked["file"] not in _KEPT:
        _KEPT.clear()
        with np.load(folder / asked["file"]) as stored:
            leaves = [stored[name] for name in stored.files]
        ready = []
        for leaf in leaves:
            values, counts = np.unique(leaf, return_counts=True)
            indices = np.searchsorted(values, leaf.reshape(-1)).astype(np.int32)
            if len(values) > 1:
                model = library.stream.model.Categorical(counts / counts.sum(), lazy=False, perfect=False)
                ready.append((indices, model))
        _KEPT[asked["file"]] = ready
    ready = _KEPT[asked["file"]]

    def encode() -> list[Any]:
        coders = []
        for indices, model in ready:
            coder = library.stream.stack.AnsCoder()
            coder.encode_reverse(indices, model)
            coders.append(coder)
        return coders

    seconds, coders = timed(encode)
    size = sum(4 * coder.num_words() for coder in coders)
    back, again = timed(lambda: [coder.decode(model, len(x)) for coder, (x, model) in zip(coders, ready, strict=True)])
    assert all(np.array_equal(a, x) for a, (x, _) in zip(again, ready, strict=True))
    return {"bytes": size, "encode_s": seconds, "decode_s": back}


def nncodec(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """nncodec over the float tensors of one file; what it decodes to is written beside."""
    if not any(isinstance(finder, _Blanks) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Blanks())
    library = importlib.import_module("nncodec.nn")
    with np.load(folder / asked["file"]) as stored:
        weights = {name: stored[name] for name in stored.files}
    settings = {"qp": int(asked["qp"]), "use_dq": bool(asked["dq"]), "model": "peer", "results": str(folder)}
    settings |= {"epochs": 0, "verbose": False, "wandb": False} | asked.get("more", {})
    seconds, coded = timed(lambda: library.encode(dict(weights), settings))
    back, again = timed(lambda: library.decode(coded, settings))
    np.savez(folder / asked["out"], **{name: np.asarray(value) for name, value in again.items()})
    return {"bytes": len(coded), "encode_s": seconds, "decode_s": back}


_DO: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "lossless": lossless,
    "constriction": constriction_symbols,
    "nncodec": nncodec,
}


def main() -> None:
    """Answers until the input ends."""
    folder, answers = Path(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # coders may print
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = _DO[asked["do"]](folder, asked)
        except Exception as error:  # whatever a peer does, the benchmark reports it
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
