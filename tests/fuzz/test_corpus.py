"""What fuzzing found worth keeping still ends in `FormatError` or in arrays of the right shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def test_the_corpus_of_the_fuzzer_crashes_nothing() -> None:
    command = [sys.executable, str(HERE / "fuzz_decoders.py"), "--replay", str(HERE / "corpus.zip")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parents[1], timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 400
