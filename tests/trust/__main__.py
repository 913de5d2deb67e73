"""What CI has no time for: runs that are killed, repeated, spread otherwise and damaged, all at toy size.

    python -m tests.trust kill --times 20    kill -9 at random moments; the finished run has the bytes of a whole one
    python -m tests.trust workers            the same bytes with one worker and with two, and in another folder
    python -m tests.trust damage             every file harmed once: named, and rebuilt to the same bytes
    python -m tests.trust interrupt          Ctrl-C at random moments: how long it takes

Without a word: all of it, within an hour on two cores. It works on copies of the checkout in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from lever_lib.artifacts import ROOT, file_hash

_LONGEST = 40.0  # seconds until a kill
_INTERRUPTS = 10
_ROUNDS = 4
_TASKS = ("kill", "workers", "damage", "interrupt")


class Checkout:
    """A copy of the working tree with outputs of its own."""

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
        params = place / "params" / "smoke.yaml"
        text = re.sub(r"workers: \d+", f"workers: {workers}", params.read_text())
        params.write_text(text if f"workers: {workers}" in text else f"{text}\nexecution: {{workers: {workers}}}\n")
        self.outputs = place / "outputs" / "smoke"

    def start(self, *arguments: str) -> subprocess.Popen:
        """Start `python -m ARGUMENTS` in a session of its own."""
        environment = os.environ | {"PYTHONPATH": str(self.root), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("LEVER_OUTPUTS", None)
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self) -> float:
        """Run all notebooks to the end; seconds it took."""
        started = time.perf_counter()
        process = self.start("lever_lib.start", "notebooks", "smoke")
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a run ended with {process.returncode}:\n{said}")
        return time.perf_counter() - started

    def verify(self) -> tuple[int, str]:
        """Exit code of `verify`, and what it said."""
        process = self.start("lever_lib", "verify", "--spec", "smoke")
        said, _ = process.communicate()
        return process.returncode, said

    def checksums(self) -> dict[str, str]:
        """Of all files that must not differ from run to run."""
        exempt = re.compile(r"(^|/)(\.|manifest\.json)|timings|^notebooks/")
        return {
            name: file_hash(path)
            for path in sorted(self.outputs.rglob("*"))
            if path.is_file() and not exempt.search(name := path.relative_to(self.outputs).as_posix())
        }

    def leftovers(self) -> list[str]:
        """Hidden files and folders that a finished run should not leave."""
        return [path.name for path in self.outputs.rglob(".*") if path.name != ".sentences.sqlite"]


def same(found: dict[str, str], expected: dict[str, str], what: str) -> None:
    """Stop if files differ."""
    other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if other:
        raise SystemExit(f"{what}: {', '.join(other)} differ")


def kill(whole: Checkout, place: Path, times: int) -> str:
    """Kill runs at random moments, and let the last one finish."""
    dice, expected, kills, finished = random.Random(), whole.checksums(), 0, 0
    checkout = Checkout(place)
    with tqdm(total=times, desc="kill -9") as bar:
        while kills < times:
            process = checkout.start("lever_lib.start", "notebooks", "smoke")
            try:
                process.communicate(timeout=dice.uniform(0.5, _LONGEST))
                same(checkout.checksums(), expected, "a run that had been killed before")
                finished += 1
                shutil.rmtree(checkout.outputs)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
                bar.update()
    checkout.run()
    same(checkout.checksums(), expected, f"after {times} kills")
    if checkout.leftovers():
        raise SystemExit(f"left over: {checkout.leftovers()}")
    return f"{times} kills, {finished + 1} runs finished in spite of them, {len(expected)} files: all the same bytes"


def workers(whole: Checkout, place: Path) -> str:
    """Run with one worker in another folder."""
    other = Checkout(place, workers=1)
    other.run()
    expected, found = whole.checksums(), other.checksums()
    for checksums in (expected, found):
        del checksums["params.yaml"]  # says how many workers there are
    same(found, expected, "with one worker")
    return f"one and two workers, two folders, {len(expected)} files: all the same bytes"


def damage(whole: Checkout, place: Path) -> str:
    """Harm every file once, a quarter of them at a time, and run again."""
    checkout = Checkout(place)
    shutil.copytree(whole.outputs, checkout.outputs)
    expected, dice = whole.checksums(), random.Random(0)
    names = [path.relative_to(whole.outputs).as_posix() for path in sorted(whole.outputs.rglob("*")) if path.is_file()]
    names = [name for name in names if not name.startswith(".") and name != "manifest.json"]
    dice.shuffle(names)
    for some in tqdm([names[start::_ROUNDS] for start in range(_ROUNDS)] + [["manifest.json"]], desc="damage"):
        for name in some:
            _harm(checkout.outputs / name, dice)
        code, said = checkout.verify()
        unnamed = [name for name in some if Path(name).name not in said]
        if code != 1 or unnamed:
            raise SystemExit(f"verify ({code}) does not name {', '.join(unnamed)}:\n{said}")
        checkout.run()
        same(checkout.checksums(), expected, f"after damage to {', '.join(some)}")
        if checkout.verify()[0]:
            raise SystemExit(f"still damaged: {checkout.verify()[1]}")
    return f"{len(names) + 1} files damaged, each of them named, and rebuilt to the same bytes"


def _harm(path: Path, dice: random.Random) -> None:
    """Flip a bit of a file, cut it off, delete it, or put another one in its place."""
    content = path.read_bytes()
    at = dice.randrange(len(content))
    harm = dice.choice(["flip", "cut", "delete", "swap"])
    if harm == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
    elif harm == "cut":
        path.write_bytes(content[:at])
    elif harm == "delete":
        path.unlink()
    else:
        shutil.copy(ROOT / "LICENSE", path)


def interrupt(_: Checkout, place: Path) -> str:
    """Press Ctrl-C at random moments; a run that finishes before is no loss, the next one starts over."""
    checkout, dice, seconds = Checkout(place), random.Random(), []
    with tqdm(total=_INTERRUPTS, desc="Ctrl-C") as bar:
        while len(seconds) < _INTERRUPTS:
            process = checkout.start("lever_lib.start", "notebooks", "smoke")
            try:
                process.communicate(timeout=dice.uniform(1, _LONGEST))
                shutil.rmtree(checkout.outputs)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                started = time.perf_counter()
                said, _ = process.communicate()
                seconds.append(time.perf_counter() - started)
                bar.update()
                if process.returncode != 130 or "Traceback" in said or "interrupted" not in said.splitlines()[-1]:
                    raise SystemExit(f"exit code {process.returncode}:\n{said}") from None
    return f"{_INTERRUPTS} times Ctrl-C, stopped after {min(seconds):.1f} to {max(seconds):.1f} s with exit code 130"


def main() -> None:
    """Run what was asked for, and say what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", choices=[*_TASKS, []], help="default: all")
    parser.add_argument("--times", type=int, default=20, help="of kill (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lever trust ") as folder:
        whole = Checkout(Path(folder) / "whole")
        sys.stderr.write(f"a whole run: {whole.run():.0f} s\n")
        for what in options.what or _TASKS:
            place = Path(folder) / what
            started = time.perf_counter()
            if what == "kill":
                found = kill(whole, place, options.times)
            else:
                found = {"workers": workers, "damage": damage, "interrupt": interrupt}[what](whole, place)
            sys.stdout.write(f"{what}: {found} ({time.perf_counter() - started:.0f} s)\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
