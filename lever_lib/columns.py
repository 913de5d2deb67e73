"""What the columns of every table mean: one dictionary, kept as a table beside the code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from lever_lib.artifacts import shown
from lever_lib.errors import LeverError, MissingArtifactError
from lever_lib.files import read_csv


def column_dictionary(table: str | None = None) -> pd.DataFrame:
    """Columns `table, column, unit, meaning` of all tables, or of one.

    Args:
        table: path within `outputs/<spec>/`, e.g. `composition/results.csv`.

    Raises:
        LeverError: if there is no such table.
    """
    with files("lever_lib").joinpath("data/columns.csv").open(encoding="utf-8") as file:
        known = pd.read_csv(file, keep_default_na=False)
    if table is None:
        return known
    if table not in set(known["table"]):
        raise LeverError(f"table {table!r}: must be one of {', '.join(known['table'].unique())}")
    return known[known["table"] == table].drop(columns="table").set_index("column")


def as_described(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """A table that was read, if its columns are those of the dictionary.

    Args:
        table: as read.
        path: of its file; the last folder and the name say which table it is.

    Raises:
        MissingArtifactError: naming the file.
    """
    wanted = column_dictionary(f"{path.parent.name}/{path.name}").index
    if set(table) != set(wanted):
        raise MissingArtifactError(f"{shown(path)}: must have the columns {', '.join(wanted)}")
    return table


def read_described(path: Path, **settings: Any) -> pd.DataFrame:
    """The table of a CSV file whose columns are those of the dictionary.

    Raises:
        LeverError: if it cannot be read, or is another table.
    """
    return as_described(read_csv(path, **settings), path)


def write_tables(found: object, folder: Path) -> None:
    """Write the tables of a dataclass, one CSV per field, to six decimals."""
    for name, table in vars(found).items():
        table.round(6).to_csv(folder / f"{name}.csv", index=False)


@dataclass(frozen=True)
class Text:
    """A table of words, which notebooks show aligned to the left.

    Attributes:
        table: to show.
    """

    table: pd.DataFrame

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            html = self.table.to_html(border=0)
        return html.replace("<td>", '<td style="text-align: left">').replace("<th>", '<th style="text-align: left">')

    def __repr__(self) -> str:
        return self.table.to_string()


def explained(table: str, example: pd.Series) -> Text:
    """The columns of a table with one row of it as an example.

    Args:
        table: as in `column_dictionary`.
        example: a row of the table.
    """
    return Text(column_dictionary(table).assign(example=example)[["example", "meaning"]])
