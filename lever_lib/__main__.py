"""The command line: `python -m lever_lib COMMAND`. User errors are one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lever_lib.bounded import read_bytes
from lever_lib.errors import LeverError, OneLineParser, exit_code

if TYPE_CHECKING:
    import numpy as np

    from lever_lib.api import Answer, OpenLibrary
    from lever_lib.search import Filters


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # what no encoding can say must not end a conversation
            stream.reconfigure(errors=errors)
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _run(options), interrupted="interrupted")


def _run(options: argparse.Namespace) -> int | None:
    try:
        code = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m lever_lib", description="Reuse policies at inference time.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=OneLineParser)
    search = _command(commands, "search", _search, "ask for a behaviour in words, get a policy")
    search.add_argument("query", nargs="?", help="the behaviour, e.g. 'collect gold quickly'")
    search.add_argument("--like", metavar="POLICY_ID", help="instead: policies that behave like this one")
    search.add_argument("--interactive", action="store_true", help="instead: answer questions line by line")
    search.add_argument("--spec", default="8x8", help="params file to use (default: %(default)s)")
    search.add_argument("--library", help="training budget, e.g. X10 (default: the last of the spec)")
    search.add_argument("--seed", help="layout, as 3 or 0003 (default: the first of the spec)")
    search.add_argument("--strategy", help="targeted, hybrid, exhaustive or library (default: hybrid)")
    search.add_argument("--method", help="how to compose, e.g. qsum, gpi, switch or exnonzero (default: gpi)")
    search.add_argument(
        "--top-k", type=int, help="candidates per sub-query of hybrid (default: as in params); of --like, rows"
    )
    search.add_argument("--decompose", help="who splits the query: offline, llm or none (default: as in params)")
    search.add_argument("--no-decompose", action="store_true", help="search for the query as it is")
    search.add_argument("--setup", action="append", metavar="NAME", help="only policies trained for this; repeatable")
    search.add_argument("--exclude-own", action="store_true", help="no policies trained for exactly what is asked")
    search.add_argument("--most-energy", type=float, metavar="JOULES", help="only policies whose training took no more")
    search.add_argument("--least-return", type=float, metavar="R", help="only policies with this return for their own")
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

    add = _command(commands, "add", _add, "add a policy of your own to a library; nothing else is built again")
    add.add_argument("file", type=Path, help=".npy with action values (S, 4), or .npz with q_table and visits")
    add.add_argument("--spec", default="8x8", help="params file to use (default: %(default)s)")
    add.add_argument("--policy-id", required=True, help="its name")
    add.add_argument("--setup", required=True, help="reward system it was trained for, e.g. gold")
    add.add_argument("--seed", required=True, help="layout that it is valid in")
    add.add_argument("--library", help="training budget it is filed under (default: the last of the spec)")
    add.add_argument("--description", help="sentence it is found by (default: that of its setup)")

    remove = _command(commands, "remove", _remove, "take a policy that was added from a library")
    remove.add_argument("policy_id")
    remove.add_argument("--spec", default="8x8", help="params file to use (default: %(default)s)")

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
    if sys.stdout is not None:  # closed by who started this
        shown = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
        sys.stdout.write(shown + "\n")  # without what would steer the terminal: a question, a name of a file


_FIGURE_ENDINGS = (".png", ".pdf", ".svg")
_TOP = 10  # policies that --like shows


def _search(options: argparse.Namespace) -> int | None:
    _check_search(options)
    from lever_lib import answers
    from lever_lib.api import open_library

    opened = open_library(options.spec)
    if options.interactive:
        return _converse(opened, options)
    if options.like is not None:
        count = _TOP if options.top_k is None else options.top_k
        found = opened.like(options.like, count, _filters(options), options.library)
        if options.json:
            _say(json.dumps({"like": options.like, "policies": answers.records(answers.candidates(opened, found))}))
        else:
            _say(answers.neighbours_in_words(opened, found, options.show_all))
        return None
    answer = _ask(opened, options, options.query)
    if options.save:
        answer.save(options.save)
    if options.figure:
        import matplotlib

        from lever_lib.artifacts import write_whole

        matplotlib.use("Agg")
        drawn = io.BytesIO()
        answer.plot().savefig(drawn, format=options.figure.suffix[1:].lower(), dpi=160)
        write_whole(options.figure, drawn.getvalue())
    _say_answer(opened, answer, options)
    return None


def _check_search(options: argparse.Namespace) -> None:
    """Refuse what cannot go together, and files that cannot be written, before any work is done."""
    _check_target("--save", options.save, (".npz",))
    _check_target("--figure", options.figure, _FIGURE_ENDINGS)
    wanted = [options.query is not None, options.like is not None, options.interactive]
    if sum(wanted) != 1:
        raise LeverError("search: wants one of a query, --like POLICY_ID or --interactive")
    if options.decompose is not None and options.no_decompose:
        raise LeverError("search: --decompose and --no-decompose cannot go together")
    if options.query is None and (options.save or options.figure):
        raise LeverError("search: --save and --figure belong to a query")
    of_questions = {
        "--seed": options.seed is not None,
        "--strategy": options.strategy is not None,
        "--method": options.method is not None,
        "--decompose": options.decompose is not None,
        "--no-decompose": options.no_decompose,
        "--filter-energy": options.filter_energy,
    }
    given = [name for name, is_given in of_questions.items() if is_given]
    if options.like is not None and given:
        raise LeverError(f"search: {given[0]} belongs to a question, not to --like")


def _ask(opened: OpenLibrary, options: argparse.Namespace, query: str) -> Answer:
    return opened.ask(
        query,
        seed=options.seed,
        library=options.library,
        strategy=options.strategy or "hybrid",
        method=options.method or "gpi",
        top_k=options.top_k,
        how="none" if options.no_decompose else options.decompose,
        filter_energy=options.filter_energy,
        filters=_filters(options),
    )


def _filters(options: argparse.Namespace) -> Filters:
    from lever_lib.envs.rewards import reward_system
    from lever_lib.search import Filters

    setups = options.setup and tuple(reward_system(setup).name for setup in options.setup)
    return Filters(setups, options.most_energy, options.least_return, options.exclude_own)


def _say_answer(opened: OpenLibrary, answer: Answer, options: argparse.Namespace) -> None:
    from lever_lib import answers

    if options.json:
        _say(json.dumps(answers.as_json(opened, answer, options.strategy or "hybrid")))
        return
    _say(answers.in_words(opened, answer, options.show_all))
    for path in (options.save, options.figure):
        if path:
            _say(f"wrote {path}")


def _warm_up(opened: OpenLibrary) -> None:
    """Load what the first question would wait for: the network that reads it, and compiled kernels."""
    from lever_lib.reader import log_odds

    log_odds(["a first sentence"])
    with suppress(LeverError):  # a library may lack what this asks for
        opened.ask("collect gold", how="offline")


def _converse(opened: OpenLibrary, options: argparse.Namespace) -> None:
    """Answer questions line by line until there are no more; an error ends no conversation."""
    from lever_lib.decompose import LONGEST

    if sys.stdin is None or sys.stdout is None:
        raise LeverError("search --interactive: needs an input and an output")
    people = sys.stdin.isatty() and not options.json
    _warm_up(opened)
    if people:
        _say(f"spec {options.spec}, {len(opened.library.policies)} policies. Ask; an empty line ends.")
    while True:
        if people:
            sys.stdout.write("> ")
            sys.stdout.flush()
        line = sys.stdin.readline(LONGEST + 2)  # an endless line is not taken in at once
        rest = line
        while len(rest) == LONGEST + 2 and not rest.endswith("\n"):
            rest = sys.stdin.readline(LONGEST + 2)  # and belongs to no other question
        if not line.strip():
            if line and not people:
                continue  # between questions of a file
            return
        try:
            _say_answer(opened, _ask(opened, options, line.strip()), options)
        except LeverError as error:
            reason = " ".join(str(error).split())
            _say(json.dumps({"query": line.strip(), "error": reason}) if options.json else reason)
        sys.stdout.flush()


def _check_target(name: str, path: Path | None, endings: tuple[str, ...]) -> None:
    """Refuse a file that cannot be written before any work is done."""
    if path is None:
        return
    if path.suffix.lower() not in endings:
        raise LeverError(f"{name} {path}: must be a name that ends in {' or '.join(endings)}")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise LeverError(f"{name} {path}: is a folder, or lies in none that can be written to")


def _decompose(options: argparse.Namespace) -> None:
    from lever_lib.decompose import meaning, recognised, understood

    if options.file:
        try:
            text = read_bytes(options.file).decode("utf-8-sig").replace("\r\n", "\n")
            lines = text.removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise LeverError(f"--file {options.file}: cannot be read as text ({type(error).__name__})") from None
    elif not options.query.strip():
        raise LeverError(f"query {options.query!r}: must be words")
    else:
        lines = [options.query]
    for query in lines:
        found = recognised(query)
        if options.json:
            _say(json.dumps({"query": query, "objectives": list(found.objectives)} | understood(found)))
        else:
            _say(f"{query}\n  {meaning(found)}")


def _optimum(options: argparse.Namespace) -> None:
    from lever_lib.api import best_episode

    layout, system, episode = best_episode(options.spec, options.seed, options.setup, options.legacy_gold_exit)
    if isinstance(episode, float):
        if options.json:
            _say(json.dumps({"optimum": None, "path": None, "upper_bound": episode}))
        else:
            golds = len(layout.golds)
            _say(f"{system.name} on layout {layout.name}: no return exceeds {episode:.2f}")
            _say(f"the optimum itself is not known: {golds} golds are too many to remember which are left")
        return
    path = [divmod(int(cell), layout.size) for cell in episode.cells]
    if options.json:
        _say(json.dumps({"optimum": episode.return_, "path": path}))
        return
    stuck = ", by staying in the last cell" if episode.stuck else ""
    _say(f"{system.name} on layout {layout.name}: optimum {episode.return_:.2f} in {len(path) - 1} moves{stuck}")
    _say(layout.drawn(episode.cells))


def _view(options: argparse.Namespace) -> None:
    from lever_lib.additions import added
    from lever_lib.artifacts import Outputs
    from lever_lib.energy import joules_in_words
    from lever_lib.library import load_library
    from lever_lib.params import load_params

    params = load_params(options.spec)
    outputs = Outputs(options.spec, params)
    library = load_library(params, outputs)
    more = added(library, outputs)
    library = library.joined(more.records, more.layouts) if more.records else library
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
        shown = table.assign(energy=joules_in_words(table))[columns]
        seconds = {"train_seconds": "{:.4f}".format}
        _say(shown.to_string(index=False, float_format="{:.2f}".format, formatters=seconds))


def _add(options: argparse.Namespace) -> None:
    from lever_lib.api import open_library

    tables = _tables(options.file)
    opened = open_library(options.spec).with_policy(
        options.policy_id,
        tables["q_table"],
        options.setup,
        options.seed,
        options.library,
        options.description,
        tables.get("visits"),
    )
    opened.keep()
    record = opened.library.policies.iloc[-1]
    if options.json:
        _say(json.dumps({"policy_id": options.policy_id, "return": record["return"], "optimum": record["optimum"]}))
        return
    _say(
        f"added {options.policy_id}: as {record['setup']} on layout {record['seed']} its return is "
        f"{record['return']:.2f}, the optimum {record['optimum']:.2f}"
    )


def _tables(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a policy's file; what runs code when read is refused."""
    from lever_lib.files import MOST_OF_A_POLICY, read_array, read_arrays

    tables = read_arrays(file, MOST_OF_A_POLICY) if file.suffix == ".npz" else {"q_table": read_array(file)}
    if "q_table" not in tables:
        raise LeverError(f"{file}: holds {', '.join(tables) or 'nothing'}, must hold q_table")
    return tables


def _remove(options: argparse.Namespace) -> None:
    from lever_lib.additions import remove
    from lever_lib.artifacts import Outputs
    from lever_lib.params import load_params

    count = remove(options.policy_id, Outputs(options.spec, load_params(options.spec)))
    text = f"removed {options.policy_id}" + (f" and {count - 1} more that were added with it" if count > 1 else "")
    _say(json.dumps({"removed": count}) if options.json else text)


def _verify(options: argparse.Namespace) -> int:
    from lever_lib.artifacts import MANIFEST, examine, outputs_root, shown
    from lever_lib.params import available_specs, load_params

    if options.spec is not None:
        load_params(options.spec)
    root = outputs_root()
    found = {spec for spec in available_specs() if (root / spec).is_dir()}
    found |= {path.parent.name for path in root.glob(f"*/{MANIFEST}")}  # though their params may be gone
    specs = [options.spec] if options.spec else sorted(found)
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
    from lever_lib.artifacts import MANIFEST, clear, outputs_root, shown
    from lever_lib.params import load_params

    load_params(options.spec)
    folder = outputs_root() / options.spec
    what = f"what runs wrote into {shown(folder)}"
    deleted = folder.is_dir() and (options.yes or _agreed(f"delete {what}? [y/N] "))
    if deleted:
        clear(folder)
    if options.json:
        _say(json.dumps({"spec": options.spec, "deleted": deleted}))
    elif deleted:
        left = ", ".join(sorted(path.name for path in folder.glob("*") if path.name != MANIFEST))
        what += f" (left: {left})" if left else ""
        _say(f"deleted {what}. What is in git comes back with git checkout, the rest with ./run_all.sh")
    else:
        _say(f"nothing was deleted{'' if folder.is_dir() else f': {shown(folder)} is not there'}")


def _agreed(question: str) -> bool:
    if sys.stderr is not None:
        sys.stderr.write(question)
        sys.stderr.flush()
    answer = "" if sys.stdin is None else sys.stdin.readline()
    if not answer:
        raise LeverError("reset: nobody is there to be asked; add --yes")
    return answer.strip().lower() in ("y", "yes")


if __name__ == "__main__":
    sys.exit(main())
