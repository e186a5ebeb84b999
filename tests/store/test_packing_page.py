"""The page on packing runs as it is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from store.dense import weights, write_dense

PAGE = (Path(__file__).parents[2] / "docs" / "packing.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = weights(0, 2000, 16)
    whole = write_dense(Path("model.safetensors"), {"embeddings.weight": ("F32", x.shape, x.tobytes())})
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/packing.md", "exec"), {})
    assert Path("again.safetensors").read_bytes() == whole


def test_the_page_names_every_option() -> None:
    from typer.main import get_command

    from gossamer.cli.main import app

    for command in ("pack", "unpack"):
        options = get_command(app).commands[command].params  # type: ignore[attr-defined]
        told = {name for option in options for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
        for name in told - {"--verify"}:
            assert name in PAGE, (command, name)
