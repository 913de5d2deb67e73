import pandas as pd
import pytest

from lever_lib.columns import column_dictionary
from lever_lib.errors import LeverError


@pytest.fixture(scope="module")
def tables(smoke, smoke_outputs):
    """Every table that a run writes, with its columns."""
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet}
    found = [path for path in smoke_outputs.folder.glob("*/*") if path.suffix in read]
    return {path.relative_to(smoke_outputs.folder).as_posix(): list(read[path.suffix](path)) for path in found}


def test_every_column_of_every_table_is_explained_and_no_other(tables):
    known = column_dictionary()
    of_a_run = known[~known["table"].str.startswith(("study/", "deep/", "scale/", "ladder/"))]
    assert {name: columns.tolist() for name, columns in of_a_run.groupby("table")["column"]} == tables


def test_explanations_are_not_empty():
    known = column_dictionary()
    assert (known["meaning"].str.len() > 3).all()
    assert not known.duplicated(["table", "column"]).any()


def test_one_table_can_be_asked_for():
    assert "optimum" in column_dictionary("composition/results.csv").index
    with pytest.raises(LeverError, match=r"composition/results\.csv"):
        column_dictionary("results")
