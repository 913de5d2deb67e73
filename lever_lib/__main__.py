"""The command line: `python -m lever_lib COMMAND`. User errors are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lever_lib.errors import LeverError, exit_code


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options), interrupted="interrupted; nothing was changed")


def _run(options: argparse.Namespace) -> None:
    try:
        options.run(options)
        sys.stdout.flush()
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
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--json", action="store_true", help="print JSON and nothing else")
    command.set_defaults(run=run)
    return command


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _search(options: argparse.Namespace) -> None:
    from lever_lib.api import open_library

    opened = open_library(options.spec)
    answer = opened.ask(
        options.query,
        seed=options.seed,
        library=options.library,
        strategy=options.strategy,
        method_name=options.method,
        top_k=options.top_k,
        how="none" if options.no_decompose else None,
    )
    policies = opened.library.policies
    found = [
        table.drop(columns="row").join(
            policies.loc[table["row"], ["setup", "snapshot", "return", "optimum", "stuck"]].reset_index(drop=True)
        )
        for table in answer.candidates
    ]
    path = [divmod(int(cell), answer.layout.size) for cell in answer.cells]
    if options.json:
        content: dict[str, Any] = {
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
            "path": path,
            "seconds": answer.seconds,
        }
        _say(json.dumps(content))
        return
    _say("predicted: for what is asked; return and optimum: for what each policy was trained for")
    for sub_query, table in zip(answer.sub_queries, found, strict=True):
        _say(f"\n{sub_query}")
        _say(table.to_string(index=False, float_format="{:.2f}".format))
    few = len(answer.policy_ids) <= 6
    _say(f"\n{options.method} of {' + '.join(answer.policy_ids) if few else f'{len(answer.policy_ids)} policies'}")
    _say(
        f"as {answer.setup} on layout {answer.layout.name}: return {answer.return_:.2f}, optimum {answer.optimum:.2f}, "
        f"predicted {answer.predicted_return:.2f}{', gets stuck' if answer.stuck else ''} ({answer.seconds:.2f} s)"
    )
    _say(answer.layout.drawn(answer.cells))


def _decompose(options: argparse.Namespace) -> None:
    from lever_lib.decompose import recognise

    if options.file:
        try:
            lines = options.file.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise LeverError(f"--file {options.file}: cannot be read as text ({type(error).__name__})") from None
    else:
        lines = [options.query]
    for query in lines:
        objectives = recognise(query)
        if options.json:
            confidence = 1.0 if objectives else 0.0
            _say(json.dumps({"query": query, "objectives": list(objectives), "confidence": confidence}))
        else:
            _say(f"{', '.join(objectives) or 'no objective recognised'}: {query}")


def _optimum(options: argparse.Namespace) -> None:
    from lever_lib.api import best_episode

    layout, system, episode = best_episode(options.spec, options.seed, options.setup, options.legacy_gold_exit)
    path = [divmod(int(cell), layout.size) for cell in episode.cells]
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
    columns = ["policy_id", "episodes", "return", "optimum", "stuck", "train_seconds", "energy_joules", "energy_label"]
    if options.json:
        _say(table.to_json(orient="records"))
    else:
        _say(f"{len(table)} policies in spec {options.spec}, {len(library.layouts)} layouts")
        _say(table[columns].to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    sys.exit(main())
