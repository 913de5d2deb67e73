import io
import json
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lever_lib.errors import LeverError
from lever_lib.files import read_array, read_arrays, read_csv, read_json, read_table
from tests.conftest import at_most, memory_in_use


def header(shape, descr="<f8"):
    """The start of an `.npy` file that claims what it likes."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.fixture
def limited():
    """Whatever asks for more than two gigabytes on top of what is there fails."""
    with at_most(resource.RLIMIT_AS, memory_in_use() + 2**31):
        yield


ARRAYS = {
    "floats": np.arange(24.0).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "flags": np.array([True, False]),
    "words": np.array(["gold", "lever"]),
    "one": np.array(3),
    "none": np.empty((0, 4)),
    "empty words": np.array(["", ""]),
}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_read_as_it_was_written(tmp_path, name, on_disk):
    np.save(tmp_path / "a.npy", ARRAYS[name])
    found = read_array(tmp_path / "a.npy", on_disk)
    assert found.dtype == ARRAYS[name].dtype
    assert np.array_equal(found, ARRAYS[name])
    assert found.flags.f_contiguous == ARRAYS[name].flags.f_contiguous


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_they_were_written(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_arrays(tmp_path / "a.npz")
    assert list(found) == list(ARRAYS)
    assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())
    found["floats"][0] = 7  # what was read may be changed


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_header_that_claims_ten_terabytes_is_refused(tmp_path, limited, on_disk):
    path = tmp_path / "a.npy"
    path.write_bytes(header((1_250_000, 1_000_000)) + b"\0" * 64)
    with pytest.raises(LeverError, match=r"a\.npy: cannot be read: an array of \(1250000, 1000000\)"):
        read_array(path, on_disk)


def test_an_archive_that_unfolds_to_too_much_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", q_table=np.zeros(2**20 + 1))
    assert (tmp_path / "a.npz").stat().st_size < 2**14
    with pytest.raises(LeverError, match=r"a\.npz: cannot be read: .* bytes cannot be in it"):
        read_arrays(tmp_path / "a.npz", most=2**23)
    assert read_arrays(tmp_path / "a.npz", most=2**24)["q_table"].shape == (2**20 + 1,)


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path, limited):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("q_table.npy", header((10**6, 10**6)) + bytes(64))
    content = bytearray(path.read_bytes())
    size = len(header((10**6, 10**6))) + 64
    claim = (2**32 - 2).to_bytes(4, "little")
    content = content.replace(size.to_bytes(4, "little"), claim)  # in the member's header and in the directory
    path.write_bytes(content)
    with pytest.raises(LeverError, match=r"a\.npz: cannot be read"):
        read_arrays(path)


def test_items_of_no_bytes_do_not_stand_for_a_million(tmp_path, limited):
    for descr in ("<U0", "|S0", "|V0"):
        (tmp_path / "a.npy").write_bytes(header((10**9,), descr))
        with pytest.raises(LeverError, match="must hold plain numbers or words"):
            read_array(tmp_path / "a.npy")


def test_a_table_that_unfolds_to_too_much_is_refused(tmp_path, monkeypatch):
    """One long word again and again takes little room in the file."""
    monkeypatch.setattr("lever_lib.files._MOST_OF_A_TABLE", 2**27)
    pd.DataFrame({"word": ["x" * 20_000] * 50_000}).to_parquet(tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**16
    with pytest.raises(LeverError, match=r"a\.parquet: cannot be read: 50,000 rows of more than"):
        read_table(tmp_path / "a.parquet")


def test_a_long_word_in_every_row_is_counted_as_often(tmp_path, limited):
    """One word of a megabyte, in a file of a few hundred bytes, for every one of 16,384 rows."""
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 2**14, pa.int32()), pa.array(["a" * 2**20]))
    path = tmp_path / "words.parquet"
    pq.write_table(
        pa.table({"x": words}), path, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30
    )
    assert path.stat().st_size < 1000
    with pytest.raises(LeverError, match=r"16,384 rows of more than 17,\d+,\d+,\d+ bytes are too many"):
        read_table(path)


@pytest.mark.parametrize("read", [read_array, read_arrays, read_csv, read_json, read_table])
def test_what_is_no_file_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(LeverError, match=f"{path}: is no file that can be read"):
            read(path)


def test_a_text_of_gigabytes_is_not_read(tmp_path, limited):
    path = tmp_path / "a.json"
    path.touch()
    os.truncate(path, 60 * 2**30)
    with pytest.raises(LeverError, match=r"has 64,424,509,440 bytes, at most 268,435,456 are read"):
        read_json(path)


def test_a_table_is_read_as_it_was_written(tmp_path):
    frame = pd.DataFrame({"name": ["a"] * 40_000, "count": range(40_000), "flag": [True, False] * 20_000})
    for written in (frame, frame.iloc[:0]):
        written.to_parquet(tmp_path / "a.parquet", index=False)
        pd.testing.assert_frame_equal(read_table(tmp_path / "a.parquet"), pd.read_parquet(tmp_path / "a.parquet"))


def test_words_that_are_none_are_found_when_a_table_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"name": ["gold in words"]}).to_parquet(path)
    path.write_bytes(path.read_bytes().replace(b"gold in words", b"gold in \x80ords"))
    with pytest.raises(LeverError, match=r"a\.parquet: cannot be read: .*UTF8"):
        read_table(path)


def test_nothing_that_could_run_is_read(tmp_path):
    evil = f"cos\nmkdir\n(V{tmp_path / 'ran'}\ntR.".encode()  # makes a folder when it is unpickled
    (tmp_path / "a.npy").write_bytes(header((), "|O") + evil)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("q_table.npy", header((), "|O") + evil)
    (tmp_path / "b.npy").write_bytes(evil)
    for read, name in ((read_array, "a.npy"), (read_arrays, "a.npz"), (read_array, "b.npy"), (read_table, "b.npy")):
        with pytest.raises(LeverError, match=name):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def whole_files():
    """One file of each kind, by how it is read."""
    arrays, table, text = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(arrays, **ARRAYS)
    array = io.BytesIO()
    np.save(array, ARRAYS["floats"])
    frame = pd.DataFrame({"name": ["a", "b"], "value": [1.0, 2.0], "count": [1, 2]})
    frame.to_parquet(table)
    frame.to_csv(text)
    return {
        read_array: array.getvalue(),
        read_arrays: arrays.getvalue(),
        read_table: table.getvalue(),
        read_csv: text.getvalue(),
        read_json: json.dumps({"gate": 0.3, "names": ["a"]}).encode(),
    }


FILES = whole_files()


@given(
    read=st.sampled_from(list(FILES)),
    harm=st.sampled_from(["flip", "cut", "insert", "other"]),
    at=st.integers(0, 5000),
    data=st.binary(min_size=1, max_size=40),
)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path_factory, read, harm, at, data):
    content = bytearray(FILES[read])
    at %= len(content)
    if harm == "flip":
        content[at : at + len(data)] = data[: len(content) - at]
    elif harm == "insert":
        content[at:at] = data
    else:
        content = content[:at] if harm == "cut" else bytearray(data)
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(content)
    said = f"{path}: cannot be read: "
    try:
        read(path)
    except LeverError as error:
        said = str(error)
    assert said.startswith(f"{path}: cannot be read: ")
    assert "\n" not in said


@pytest.mark.parametrize("read", list(FILES))
def test_a_missing_file_is_the_file_systems_error(tmp_path, read):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
