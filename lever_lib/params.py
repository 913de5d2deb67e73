"""Settings of a run: one YAML file per spec, read once into frozen dataclasses.

`params/<spec>.yaml` is the only place where science is set. An unknown key, a wrong type or an impossible
value is refused with one line that names the file, the key, the value and the rule.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from lever_lib.bounded import read_bytes
from lever_lib.errors import ParamsError

PARAMS_FOLDER = Path(__file__).resolve().parents[1] / "params"

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_ADDRESS = re.compile(r"tcp://[^\s/:]+:[0-9]{1,5}")
_COMMANDS = ("test", "notebooks", "study")
_SPEC_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # of a file, too
MOST_CELLS_A_SIDE = 128
_MOST = 100_000  # bytes of a params file
_PathName = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]


def gold_slots(size: int) -> int:
    """Gold distances that the state features of a `size` x `size` grid hold; also the most golds allowed."""
    return 50 if size < 64 else 200


@dataclass(frozen=True, config=_STRICT)
class Grid:
    """The world: side, number of objects, move set, rule for leaving gold behind."""

    size: int = Field(ge=3, le=MOST_CELLS_A_SIDE)  # N, cells per side
    golds: int = Field(ge=0, le=200)
    blocks: int = Field(ge=0)
    hazards: int = Field(ge=0)
    moves: Literal["forward", "cardinal"] = "forward"  # cardinal moves lead back: few golds, small grids
    legacy_gold_exit: bool = False  # exit with gold left costs a flat 20 instead of 10 x the share left

    @model_validator(mode="after")
    def _objects_fit(self) -> Grid:
        if self.golds > gold_slots(self.size):
            raise ValueError(f"golds = {self.golds} must be at most {gold_slots(self.size)} at size {self.size}")
        needed = self.golds + self.blocks + self.hazards + 3
        if needed > self.size**2:
            raise ValueError(
                f"golds + blocks + hazards + lever + start + exit = {needed} "
                f"must fit in size x size = {self.size**2} cells"
            )
        return self


@dataclass(frozen=True, config=_STRICT)
class Budget:
    """Training budget of one library (X1, X5, X10)."""

    episodes: int = Field(ge=5, le=10_000_000)
    epsilon_decay: float = Field(gt=0, le=1)  # factor per episode, from 1.0 down to sarsa.epsilon_min


@dataclass(frozen=True, config=_STRICT)
class Sarsa:
    """Tabular SARSA with an epsilon-greedy behaviour policy."""

    alpha: float = Field(0.1, gt=0, le=1)  # step size
    gamma: float = Field(0.99, ge=0, le=1)  # discount of the learning target
    epsilon_min: float = Field(0.01, ge=0, le=1)
    state: Literal["cell", "augmented"] = "cell"  # index of Q: the cell, as published, or (cell, golds left, lever)
    snapshots: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the budget

    @model_validator(mode="after")
    def _snapshots_ordered(self) -> Sarsa:
        shares = self.snapshots
        ordered = all(low < high for low, high in itertools.pairwise(shares))
        if not shares or shares[0] <= 0 or shares[-1] != 1.0 or not ordered:
            raise ValueError(f"snapshots = {list(shares)} must rise from above 0 to exactly 1.0")
        if len({f"{100 * share:g}" for share in shares}) < len(shares):  # policies are named by it
            raise ValueError(f"snapshots = {list(shares)} must differ in their first six digits")
        return self


@dataclass(frozen=True, config=_STRICT)
class Pi2Vec:
    """Policy embeddings: mean successor features over canonical states."""

    method: Literal["exact", "network"] = "exact"  # followed along paths, or learned from transitions
    gamma: float = Field(0.99, ge=0, lt=1)  # discount of the embedding, nowhere else
    canonical_states: int = Field(128, ge=1, le=10_000)  # K per layout
    learner: Literal["improved", "published"] = "improved"  # of a network
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,4})?)\z")  # of a network: cpu, cuda, cuda:1, ...


@dataclass(frozen=True, config=_STRICT)
class Regressor:
    """Predicts the return of an embedded policy under any reward system."""

    source: Literal["library", "study"] = "library"  # fitted on the run's own layouts, or on a study's
    trees: int = Field(60, ge=1, le=10_000)  # per event
    leaves: int = Field(15, ge=2, le=1000)  # per tree
    interval_level: float = Field(0.9, gt=0, lt=1)  # nominal coverage of the prediction intervals


@dataclass(frozen=True, config=_STRICT)
class Search:
    """Text retrieval and query decomposition."""

    encoder: str = Field("minilm", min_length=1)  # minilm, or a sentence-transformers name or folder
    trust_remote_code: bool = False  # of a named encoder: run the code that comes with it
    decompose: Literal["offline", "llm", "none"] = "offline"
    index: Literal["auto", "flat", "hnsw", "ivf"] = "auto"  # by the number of distinct sentences, or always this
    candidates: int = Field(5, ge=2, le=17)  # per sub-query, what `exhaustive` combines: of four, 17^4 = 83,521 at most
    top_k: int = Field(3, ge=1)  # of these, what `hybrid` combines
    cosine_gate: float | None = Field(None, ge=-1, le=0.9)  # hits below it are no answer; null: calibrated per encoder

    @model_validator(mode="after")
    def _top_k_within_candidates(self) -> Search:
        if self.top_k > self.candidates:
            raise ValueError(f"top_k = {self.top_k} must be at most candidates = {self.candidates}")
        return self


@dataclass(frozen=True, config=_STRICT)
class LanguageModel:
    """Who splits a question under `search.decompose: llm`. `OPENAI_API_KEY` and `OPENAI_BASE_URL` say where it is."""

    model: str = Field("gpt-5-nano", min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")
    timeout_s: float = Field(60.0, gt=0, le=3600)  # for a whole question, retries included
    tries: int = Field(3, ge=1, le=10)
    fallback: Literal["error", "offline"] = "error"  # what happens if it gives no usable answer
    record: _PathName | None = None  # file that exchanges are appended to
    replay: _PathName | None = None  # file of recorded exchanges that answer instead, without network or key


@dataclass(frozen=True, config=_STRICT)
class Study:
    """Further layouts, for intervals that say something; only `./run_all.sh study` runs them."""

    first_seed: int = Field(100, ge=0, le=9000)
    layouts: int = Field(50, ge=3, le=1000)
    training_first_seed: int = Field(200, ge=0, le=9000)  # layouts that its regressor is fitted on
    training_layouts: int = Field(60, ge=3, le=1000)

    @model_validator(mode="after")
    def _apart(self) -> Study:
        test, training = self.test_seeds, self.training_seeds
        if set(test) & set(training):
            raise ValueError(
                f"layouts {test[0]} to {test[-1]} (first_seed, layouts) and {training[0]} to {training[-1]} "
                "(training_first_seed, training_layouts) must be apart: what is tested must not have been trained on"
            )
        return self

    @property
    def test_seeds(self) -> range:
        """Layouts that questions are asked on."""
        return range(self.first_seed, self.first_seed + self.layouts)

    @property
    def training_seeds(self) -> range:
        """Layouts that the regressor is fitted on."""
        return range(self.training_first_seed, self.training_first_seed + self.training_layouts)


@dataclass(frozen=True, config=_STRICT)
class Deep:
    """Deep policies beside the library; only `./run_all.sh study` trains them."""

    steps: int = Field(0, ge=0, le=100_000_000)  # of the environment, per policy; 0: none are trained
    seeds: tuple[Annotated[int, Field(ge=0, le=9999)], ...] = (0,)  # layouts

    @model_validator(mode="after")
    def _some_layout(self) -> Deep:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)} must be at least one, each of them once")
        return self


@dataclass(frozen=True, config=_STRICT)
class Scale:
    """Text indexes of many made-up sentences; only `./run_all.sh study` builds them."""

    vectors: tuple[Annotated[int, Field(ge=100, le=10_000_000)], ...] = ()  # sizes; none: nothing is measured


@dataclass(frozen=True, config=_STRICT)
class Energy:
    """How joules are estimated where no meter can be read."""

    watts_per_core: float = Field(15.0, gt=0)  # of one busy core


@dataclass(frozen=True, config=_STRICT)
class Execution:
    """Where the work runs. Never changes a result."""

    workers: int = Field(2, ge=1, le=1024)
    scheduler: str | None = None  # address of a Dask cluster that does the work instead

    @model_validator(mode="after")
    def _scheduler_is_an_address(self) -> Execution:
        if self.scheduler is not None and not _ADDRESS.fullmatch(self.scheduler):
            raise ValueError(f"scheduler = {self.scheduler!r} must be null or an address like tcp://host:8786")
        return self


@dataclass(frozen=True, config=_STRICT)
class Params:
    """Everything a run needs to know, for one spec."""

    grid: Grid
    libraries: dict[str, Budget]
    seeds: tuple[Annotated[int, Field(ge=0, le=9999)], ...] = (0, 1, 2, 3, 4)  # layouts
    root_seed: int = Field(0, ge=0)  # of every random stream except the layouts
    sarsa: Sarsa = Field(default_factory=Sarsa)
    pi2vec: Pi2Vec = Field(default_factory=Pi2Vec)
    regressor: Regressor = Field(default_factory=Regressor)
    search: Search = Field(default_factory=Search)
    llm: LanguageModel = Field(default_factory=LanguageModel)
    study: Study = Field(default_factory=Study)
    deep: Deep = Field(default_factory=Deep)
    scale: Scale = Field(default_factory=Scale)
    energy: Energy = Field(default_factory=Energy)
    execution: Execution = Field(default_factory=Execution)

    @model_validator(mode="after")
    def _whole(self) -> Params:
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 3:
            raise ValueError(
                f"seeds = {list(self.seeds)} must be at least three different numbers: a layout to train on, "
                "one to calibrate intervals on, one to test on"
            )
        if self.deep.steps and not set(self.deep.seeds) <= set(self.seeds):
            raise ValueError(f"deep.seeds = {list(self.deep.seeds)} must be among seeds = {list(self.seeds)}")
        if self.deep.steps and self.sarsa.state != "cell":
            raise ValueError(f"deep.steps = {self.deep.steps} must be 0 where sarsa.state = {self.sarsa.state!r}")
        fit = all(_SPEC_NAME.fullmatch(name) and name != "all" for name in self.libraries)  # `all` sums tables up
        if not self.libraries or not fit:
            rule = "must be at least one name of letters, digits, '.', '_' or '-', other than 'all'"
            raise ValueError(f"libraries = {list(self.libraries)} {rule}")
        order = sorted(self.libraries, key=lambda name: (self.libraries[name].episodes, name))
        if order != list(self.libraries):  # which one comes last means something, and mappings are compared without it
            raise ValueError(f"libraries = {list(self.libraries)} must be in the order of their episodes: {order}")
        for name, budget in self.libraries.items():
            marks = snapshot_episodes(self, name)
            if marks[0] < 1 or len(set(marks)) != len(marks):
                raise ValueError(f"libraries.{name}.episodes = {budget.episodes} is too few for the snapshots")
        return self


def snapshot_episodes(params: Params, library: str) -> list[int]:
    """Episodes trained at each snapshot of a library, ascending; the last is the whole budget."""
    episodes = params.libraries[library].episodes
    return [round(share * episodes) for share in params.sarsa.snapshots]


def available_specs() -> list[str]:
    """Names of the specs that have a params file."""
    return sorted(path.stem for path in PARAMS_FOLDER.glob("*.yaml"))


def load_params(spec: str) -> Params:
    """Read and check `params/<spec>.yaml`.

    Args:
        spec: name of the file without `.yaml`; also the folder name under `outputs/`.

    Raises:
        ParamsError: naming the file, the key, the value and the rule.
    """
    if not isinstance(spec, str) or not _SPEC_NAME.fullmatch(spec):
        raise ParamsError(
            f"spec {_short(spec)}: must be a name of up to 100 letters, digits, '.', '_' or '-', and start with a "
            "letter or digit"
        )
    if spec in _COMMANDS:
        raise ParamsError(f"spec {spec!r}: is a command of run_all.sh; give the params file another name")
    path = PARAMS_FOLDER / f"{spec}.yaml"
    if not path.is_file():
        known = ", ".join(available_specs()) or "none"
        raise ParamsError(f"spec {spec!r}: no file params/{path.name}; specs here: {known}")
    return parse_params(read_bytes(path, _MOST), source=f"params/{path.name}")


def parse_params(text: str | bytes, source: str = "params") -> Params:
    """Check the YAML text of a params file; `source` is how errors call it."""
    try:
        raw = yaml.load(text, Loader=_Loader)
        plain = json.dumps(raw, ensure_ascii=False, default=_no_setting)
        plain.encode()  # half letters are no text
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ParamsError(f"{source}: not readable as YAML: {_yaml_reason(error)}") from None
    if not isinstance(raw, dict):
        raise ParamsError(f"{source}: must be a mapping of keys to values, is {type(raw).__name__}")
    try:
        # JSON mode: strict about numbers and names, while lists and mappings become tuples and dataclasses
        return TypeAdapter(Params).validate_json(plain)
    except ValidationError as error:
        raise ParamsError(f"{source}: {_explain(error)}") from None


def resolved(params: Params) -> dict[str, Any]:
    """The settings as plain nested dictionaries and lists, defaults filled in."""
    return TypeAdapter(Params).dump_python(params, mode="json")


def _yaml_reason(error: Exception) -> str:
    """What is wrong, and where; without the line itself, which may hold what nobody was meant to see."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    what = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{what} on line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def _no_setting(value: Any) -> None:
    raise TypeError(f"{_short(value)} is no text, number, list or mapping")


class _Loader(yaml.SafeLoader):
    """Safe loader that reads numbers as people write them, and refuses a key given twice, and references.

    To YAML 1.1, which PyYAML speaks, 0010 is eight, 1:30 is ninety and 1e-3 is a word. Here numbers are decimal, as in
    YAML 1.2. A few lines of references to references stand for more than fits into any memory.
    """

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if tag.rsplit(":", 1)[1] in ("bool", "null")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """A whole number in decimal digits."""
        return int(self.construct_scalar(node))

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node; raises `yaml.YAMLError` where it is a reference to another one."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(f"*{event.anchor} on line {event.start_mark.line + 1}: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """The mapping of a YAML node; raises `yaml.YAMLError` where a key is repeated or is no name."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):  # 1 and "1" would become the same
                raise yaml.YAMLError(
                    f"key {key!r} on line {key_node.start_mark.line + 1} is not a name; put it in quotes if it is one"
                )
            if key in seen:
                raise yaml.YAMLError(f"key {key!r} on line {key_node.start_mark.line + 1} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


_DIGITS = "[0-9]+(?:_[0-9]+)*"
_FLOAT = rf"[-+]?(?:\.[0-9]+|{_DIGITS}(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _kind, _pattern in (("int", rf"[-+]?{_DIGITS}"), ("float", _FLOAT)):  # the first that fits counts
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)

_UNKNOWN_KEY = {"unexpected_keyword_argument", "extra_forbidden"}


def _explain(error: ValidationError) -> str:
    """First problem of a failed check as `key = value: rule`."""
    unknown_first = sorted(error.errors(), key=lambda problem: problem["type"] not in _UNKNOWN_KEY)
    first = unknown_first[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location) or "the file"
    kind = first["type"]
    if kind in _UNKNOWN_KEY:
        return f"{key}: not a known key{_nearest_key(location)}"  # its value may be meant for nobody's eyes
    if kind in {"missing", "missing_argument"}:
        return f"{key} is missing and has no default"
    rule = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    if kind == "value_error" and not isinstance(value, str | int | float):
        return f"{key}: {rule}" if location else rule
    return f"{key} = {_short(value)}: {rule[0].lower() + rule[1:]}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _nearest_key(location: list[str]) -> str:
    sections = {
        "grid": Grid,
        "sarsa": Sarsa,
        "pi2vec": Pi2Vec,
        "regressor": Regressor,
        "search": Search,
        "llm": LanguageModel,
    }
    sections |= {
        "study": Study,
        "deep": Deep,
        "scale": Scale,
        "energy": Energy,
        "execution": Execution,
        "libraries": Budget,
    }
    owner = Params if len(location) == 1 else sections.get(location[0])
    known = [field.name for field in fields(owner)] if owner else []
    close = difflib.get_close_matches(location[-1], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
