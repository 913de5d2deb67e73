"""The command line: `python -m lever_lib COMMAND`. User errors are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lever_lib.errors import LeverError, exit_code

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from lever_lib.api import Answer
    from lever_lib.envs.gridworld import Layout


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options), interrupted="interrupted")


def _run(options: argparse.Namespace) -> int | None:
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m lever_lib", description="Reuse policies at inference time.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    search = _command(commands, "search", _search, "ask for a behaviour in words, get a policy")
    search.add_argument("query", help="the behaviour, e.g. 'collect gold quickly'")
    search.add_argument("--spec", default="8x8", help="params file to use (default: %(default)s)")
    search.add_argument("--library", help="training budget, e.g. X10 (default: the last of the spec)")
    search.add_argument("--seed", help="layout, as 3 or 0003 (default: the first of the spec)")
    search.add_argument("--strategy", default="hybrid", help="targeted, hybrid, exhaustive or library")
    search.add_argument("--method", default="gpi", help="how to compose: qsum, gpi or exnonzero")
    search.add_argument("--top-k", type=int, help="candidates per sub-query of hybrid (default: as in params)")
    search.add_argument("--no-decompose", action="store_true", help="search for the query as it is")
    search.add_argument(
        "--filter-energy", action="store_true", help="of equally close policies prefer those that took least energy"
    )
    search.add_argument("--show-all", action="store_true", help="show all that is known of each candidate")
    search.add_argument("--save", type=Path, metavar="FILE.npz", help="write the composed policy")
    search.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the layout and the policy's path")

    split = _command(commands, "decompose", _decompose, "say which objectives a query asks for; needs no library")
    source = split.add_mutually_exclusive_group(required=True)
    source.add_argument("query", nargs="?", help="the query")
    source.add_argument("--file", type=Path, help="one query per line")

    best = _command(commands, "optimum", _optimum, "the best possible return and path; needs no library")
    best.add_argument("--spec", required=True)
    best.add_argument("--seed", required=True, help="layout, as 3 or 0003")
    best.add_argument("--setup", required=True, help="reward system, e.g. path-gold")
    best.add_argument(
        "--legacy-gold-exit", action=argparse.BooleanOptionalAction, help="exit rule for gold (default: the spec's)"
    )

    view = _command(commands, "view", _view, "show what a library holds")
    view.add_argument("--spec", default="8x8", help="params file to use (default: %(default)s)")
    view.add_argument("--library", help="only this training budget")
    view.add_argument("--seed", help="only this layout")
    view.add_argument("--setup", help="only this reward system")

    verify = _command(
        commands, "verify", _verify, "compare all files with their checksums; exit code 1 if one is wrong"
    )
    verify.add_argument("--spec", help="only this spec (default: all)")

    reset = _command(commands, "reset", _reset, "delete what a spec's runs have written, after asking")
    reset.add_argument("--spec", required=True)
    reset.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int | None], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")
    command.set_defaults(run=run)
    return command


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


_FIGURE_ENDINGS = (".png", ".pdf", ".svg")
_FOUND = ["setup", "snapshot", "return", "optimum", "stuck"]  # of each candidate's own record


def _search(options: argparse.Namespace) -> None:
    _check_target("--save", options.save, (".npz",))
    _check_target("--figure", options.figure, _FIGURE_ENDINGS)
    from lever_lib.api import open_library

    opened = open_library(options.spec)
    answer = opened.ask(
        options.query,
        seed=options.seed,
        library=options.library,
        strategy=options.strategy,
        method=options.method,
        top_k=options.top_k,
        how="none" if options.no_decompose else None,
        filter_energy=options.filter_energy,
    )
    if options.save:
        answer.save(options.save)
    if options.figure:
        import matplotlib

        matplotlib.use("Agg")
        answer.plot().savefig(options.figure, dpi=160)
    records = opened.library.policies.merge(opened.library.timings[["policy_id", "train_seconds"]], on="policy_id")
    if options.show_all:
        records["q_table_shape"] = " x ".join(str(length) for length in opened.library.q_tables.shape[1:])
    columns = [name for name in records if name != "policy_id"] if options.show_all else _FOUND
    found = [
        table.drop(columns="row").join(records.loc[table["row"], columns].reset_index(drop=True))
        for table in answer.candidates
    ]
    if options.json:
        _say(json.dumps(_answer_as_json(options, answer, found)))
    else:
        _say_answer(options, answer, found)


def _check_target(name: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise LeverError(f"{name} {path}: must end in {' or '.join(endings)}")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise LeverError(f"{name} {path}: is a folder, or lies in none that can be written to")


def _answer_as_json(options: argparse.Namespace, answer: Answer, found: list[pd.DataFrame]) -> dict[str, Any]:
    return {
        "query": answer.query,
        "spec": options.spec,
        "seed": answer.layout.name,
        "setup": answer.setup,
        "objectives": list(answer.objectives),
        "strategy": options.strategy,
        "method": options.method,
        "sub_queries": [
            {"query": sub_query, "candidates": json.loads(table.to_json(orient="records"))}
            for sub_query, table in zip(answer.sub_queries, found, strict=True)
        ],
        "policies": list(answer.policy_ids),
        "return": answer.return_,
        "optimum": answer.optimum,
        "predicted_return": answer.predicted_return,
        "stuck": answer.stuck,
        "path": _path(answer.cells, answer.layout),
        "seconds": answer.seconds,
    }


def _say_answer(options: argparse.Namespace, answer: Answer, found: list[pd.DataFrame]) -> None:
    _say(
        "predicted: for what is asked; return and optimum: for what each policy was trained for; "
        "energy: joules of its training"
    )
    for sub_query, table in zip(answer.sub_queries, found, strict=True):
        _say(f"\n{sub_query}")
        if options.show_all:
            _say("\n\n".join(row.to_string(float_format="{:.4g}".format) for _, row in table.iterrows()))
        else:
            shown = table.assign(energy=_energy(table)).drop(columns=["energy_joules", "energy_label"])
            _say(shown.to_string(index=False, float_format="{:.2f}".format))
    few = len(answer.policy_ids) <= 6
    _say(f"\n{options.method} of {' + '.join(answer.policy_ids) if few else f'{len(answer.policy_ids)} policies'}")
    _say(
        f"as {answer.setup} on layout {answer.layout.name}: return {answer.return_:.2f}, optimum {answer.optimum:.2f}, "
        f"predicted {answer.predicted_return:.2f}{', gets stuck' if answer.stuck else ''} ({answer.seconds:.2f} s)"
    )
    _say(answer.layout.drawn(answer.cells))
    for path in (options.save, options.figure):
        if path:
            _say(f"wrote {path}")


def _energy(table: pd.DataFrame) -> list[str]:
    """Joules and how they were come by, for people."""
    pairs = zip(table["energy_joules"], table["energy_label"], strict=True)
    return [label if joules != joules else f"{joules:.3g} ({label})" for joules, label in pairs]


def _path(cells: np.ndarray, layout: Layout) -> list[tuple[int, int]]:
    """Row and column of each cell."""
    return [divmod(int(cell), layout.size) for cell in cells]


def _decompose(options: argparse.Namespace) -> None:
    from lever_lib.envs.rewards import components_named

    if options.file:
        try:
            lines = options.file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise LeverError(f"--file {options.file}: cannot be read as text ({type(error).__name__})") from None
    else:
        lines = [options.query]
    for query in lines:
        objectives = components_named(query)
        if options.json:
            confidence = 1.0 if objectives else 0.0
            _say(json.dumps({"query": query, "objectives": list(objectives), "confidence": confidence}))
        else:
            _say(f"{', '.join(objectives) or 'no objective recognised'}: {query}")


def _optimum(options: argparse.Namespace) -> None:
    from lever_lib.api import best_episode

    layout, system, episode = best_episode(options.spec, options.seed, options.setup, options.legacy_gold_exit)
    path = _path(episode.cells, layout)
    if options.json:
        _say(json.dumps({"optimum": episode.return_, "path": path}))
        return
    stuck = ", by staying in the last cell" if episode.stuck else ""
    _say(f"{system.name} on layout {layout.name}: optimum {episode.return_:.2f} in {len(path) - 1} moves{stuck}")
    _say(layout.drawn(episode.cells))


def _view(options: argparse.Namespace) -> None:
    from lever_lib.artifacts import Outputs
    from lever_lib.library import load_library
    from lever_lib.params import load_params

    params = load_params(options.spec)
    library = load_library(params, Outputs(options.spec, params))
    table = library.policies
    if options.library is not None:
        table = table[table["library"] == library.check_library(options.library)]
    if options.seed is not None:
        table = table[table["seed"] == library.layout(options.seed).name]
    if options.setup is not None:
        table = table[table["setup"] == library.system(options.setup).name]
        if table.empty:
            raise LeverError(f"setup {options.setup!r}: no policy here; trained: {', '.join(library.systems)}")
    table = table.merge(library.timings, on="policy_id")
    columns = ["policy_id", "episodes", "return", "optimum", "stuck", "train_seconds", "energy"]
    if options.json:
        _say(table.to_json(orient="records"))
    else:
        _say(f"{len(table)} policies in spec {options.spec}, {len(library.layouts)} layouts")
        shown = table.assign(energy=_energy(table))[columns]
        seconds = {"train_seconds": "{:.4f}".format}
        _say(shown.to_string(index=False, float_format="{:.2f}".format, formatters=seconds))


def _verify(options: argparse.Namespace) -> int:
    from lever_lib.artifacts import examine, outputs_root, shown
    from lever_lib.params import available_specs, load_params

    if options.spec is not None:
        load_params(options.spec)
    root = outputs_root()
    specs = [options.spec] if options.spec else [spec for spec in available_specs() if (root / spec).is_dir()]
    report: dict[str, Any] = {
        spec: {
            name: {
                "built": state.built,
                "missing": [shown(path) for path in state.missing],
                "damaged": [shown(path) for path in state.damaged],
            }
            for name, state in examine(root / spec).items()
        }
        for spec in specs
    }
    wrong = any(state["missing"] or state["damaged"] for stages in report.values() for state in stages.values())
    if options.json:
        _say(json.dumps(report))
    else:
        _say("\n".join(_verified(report)) or "nothing is built yet; ./run_all.sh builds it")
    return int(wrong)


def _verified(report: dict[str, Any]) -> Iterator[str]:
    """The lines that `verify` prints."""
    for spec, stages in report.items():
        if not stages:
            yield f"{spec}: not built"
        for name, state in stages.items():
            faults = [f"{path} is {fault}" for fault in ("missing", "damaged") for path in state[fault]]
            condition = "; ".join(faults) if faults else "whole" if state["built"] else "not built"
            yield f"{spec}: {name}: {condition}"


def _reset(options: argparse.Namespace) -> None:
    from lever_lib.artifacts import LASTING, clear, outputs_root, shown
    from lever_lib.params import load_params

    load_params(options.spec)
    folder = outputs_root() / options.spec
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    deleted = folder.is_dir() and (options.yes or _agreed(f"delete {shown(folder)} ({size / 1e6:.1f} MB)? [y/N] "))
    if deleted:
        clear(folder)
    if options.json:
        _say(json.dumps({"spec": options.spec, "deleted": deleted}))
    elif deleted:
        kept = "".join(f"; {name}/ is kept" for name in LASTING if (folder / name).is_dir())
        _say(f"deleted {shown(folder)}{kept}. What is in git comes back with git checkout, the rest with ./run_all.sh")
    else:
        _say(f"nothing was deleted{'' if folder.is_dir() else f': {shown(folder)} is not there'}")


def _agreed(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    if not answer:
        raise LeverError("reset: nobody is there to be asked; add --yes")
    return answer.strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
