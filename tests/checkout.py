"""Copies of the working tree, to run and to harm."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from lever_lib.artifacts import ROOT, file_hash

# Python ends by the signal itself if that came while C code ran Python code; a shell says 130 for that, too.
ENDED_BY_CTRL_C = (130, -signal.SIGINT)
PLANTED_KEY = "sk-planted-0123456789-abcdefghij"
LONGEST = 600  # seconds that a command may take


class Checkout:
    """A copy of the working tree, without its tests, with outputs of its own.

    Attributes:
        root: of the copy.
        outputs: folder of the toy spec's outputs.
        environment: of the commands it starts.
    """

    def __init__(self, place: Path, workers: int = 2) -> None:
        self.root = place
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for name in listed:
            if not name.startswith(("outputs/", "tests/")) and (ROOT / name).is_file():
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, place / name)
        self.outputs = place / "outputs" / "smoke"
        self.change_params(r"workers: \d+", f"workers: {workers}")
        self.environment = os.environ | {"PYTHONPATH": str(place), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        self.environment.pop("LEVER_OUTPUTS", None)

    def change_params(self, pattern: str, text: str, spec: str = "smoke") -> None:
        """Replace what matches once in a params file."""
        path = self.root / "params" / f"{spec}.yaml"
        changed, count = re.subn(pattern, text, path.read_text())
        assert count == 1, pattern
        path.write_text(changed)

    def ask_a_model(self) -> None:
        """Have questions split by a language model, and what it says recorded; nobody's own key is inherited."""
        self.change_params("decompose: offline", "decompose: llm")
        self.change_params("record: null", "record: recorded.jsonl")
        for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
            self.environment.pop(name, None)

    def plant_key(self, url: str) -> None:
        """Put a key that is to be searched for into `.env`, with the address it is for."""
        (self.root / ".env").write_text(f"OPENAI_API_KEY={PLANTED_KEY}\nOPENAI_BASE_URL={url}\n")

    def start(self, *arguments: str, room: int | None = None) -> subprocess.Popen:
        """Start `python ARGUMENTS` in a session of its own; its files grow to `room` bytes at most."""
        limits = [] if room is None else ["prlimit", f"--fsize={room}"]
        return subprocess.Popen(
            [*limits, sys.executable, *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def notebooks(self, *specs: str, room: int | None = None) -> subprocess.Popen:
        """Start what `run_all.sh` starts."""
        return self.start("-m", "lever_lib.start", "notebooks", *(specs or ("smoke",)), room=room)

    def run(self, *specs: str) -> float:
        """Run all notebooks to the end; seconds it took."""
        started = time.perf_counter()
        process = self.notebooks(*specs)
        said, _ = process.communicate(timeout=LONGEST)
        if process.returncode:
            raise SystemExit(f"a run ended with {process.returncode}:\n{said}")
        return time.perf_counter() - started

    def verify(self) -> tuple[int, str]:
        """Exit code of `verify`, and what it said."""
        process = self.start("-m", "lever_lib", "verify", "--spec", "smoke")
        said, _ = process.communicate(timeout=LONGEST)
        return process.returncode, said

    def checksums(self, spec: str = "smoke") -> dict[str, str]:
        """Of all files that must not differ from run to run."""
        exempt = re.compile(r"(^|/)(\.|manifest\.json)|timings|^notebooks/")
        folder = self.outputs.with_name(spec)
        return {
            name: file_hash(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not exempt.search(name := path.relative_to(folder).as_posix())
        }

    def leftovers(self) -> list[str]:
        """Hidden files and folders that a finished run should not leave."""
        return [path.name for path in self.outputs.rglob(".*") if path.name != ".sentences.sqlite"]
