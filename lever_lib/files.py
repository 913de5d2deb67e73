"""The one door through which files are read that somebody else may have written: arrays, tables, JSON.

What a header claims is held against the size of the file before memory is set aside for it, nothing that is read can
run code (no pickles), and whatever a reader stumbles over is one error that names the file.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np

from lever_lib.artifacts import shown
from lever_lib.bounded import check_file, read_bytes
from lever_lib.errors import LeverError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_DENSEST = 1040  # bytes that one byte of a deflated file can stand for, at most
_MOST = 2**33  # bytes that a compressed file may unfold to
MOST_OF_A_POLICY = 2**28  # bytes, of one that somebody brings; what is made of it takes several times as much
_MOST_OF_A_TABLE = 2**31  # bytes
_MOST_EMPTY = 2**20  # empty words, which take no bytes
_ROWS = 2**14  # of a table that are read at a time
Content = TypeVar("Content")


def read_array(path: Path, on_disk: bool = False) -> np.ndarray:
    """The array of an `.npy` file.

    Args:
        path: of the file.
        on_disk: whether it stays there, read-only, instead of being read into memory.

    Raises:
        LeverError: if it cannot be read, or its header claims more than the file holds.
    """
    check_file(path)
    with path.open("rb") as file:
        size = path.stat().st_size
        return _understood(path, lambda: _array(file, size, path if on_disk else None))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `.npy`.

    Raises:
        OSError: if it cannot be written to the end. `np.save` leaves writing to the C library, and when that finds no
            room for the last bytes while it closes the file, nobody hears of it.
    """
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array)


def read_arrays(path: Path, most: int = _MOST) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Args:
        path: of the file.
        most: bytes that it may unfold to.

    Raises:
        LeverError: if they cannot be read, or a header claims more than the file holds.
    """
    return _understood(path, lambda: _arrays(path, most))


def _arrays(path: Path, most: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        unfolded = sum(member.file_size for member in members)
        if unfolded > min(most, _DENSEST * path.stat().st_size):
            raise ValueError(f"{unfolded:,} bytes cannot be in it")
        found = {}
        for member in members:
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
        return found


def _array(file: BinaryIO, size: int, on_disk: Path | None = None) -> np.ndarray:
    major, minor = np.lib.format.read_magic(file)
    if (major, minor) not in ((1, 0), (2, 0)):
        raise ValueError(f"version {major}.{minor} of the format is not known")
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in "biufSU" or (not dtype.itemsize and math.prod(shape) > _MOST_EMPTY):
        raise ValueError(f"must hold plain numbers or words, not {dtype}")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or file.tell() + count * dtype.itemsize != size:
        raise ValueError(f"an array of {shape} {dtype} is not what its {size:,} bytes hold")
    if on_disk is not None and count:
        order = "F" if fortran else "C"
        return np.memmap(on_disk, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order=order)
    flat = np.empty(count, dtype)
    if flat.nbytes:
        waiting = memoryview(flat.view(np.uint8))
        while len(waiting):
            read = file.readinto(waiting)
            if not read:
                raise ValueError("it is cut off")
            waiting = waiting[read:]
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def read_table(path: Path) -> pd.DataFrame:
    """The table of a Parquet file.

    Raises:
        LeverError: if it cannot be read.
    """
    return _understood(path, lambda: _table(path))


def _table(path: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(path, memory_map=False)
    words = [field.name for field in schema if pa.types.is_large_string(field.type) or pa.types.is_string(field.type)]
    with pq.ParquetFile(path, memory_map=False, read_dictionary=words) as file:
        rows, unfolded, batches = file.metadata.num_rows, 0, []
        for batch in file.iter_batches(_ROWS):
            unfolded += sum(map(_unfolded, batch.columns))
            if unfolded > _MOST_OF_A_TABLE:
                raise ValueError(f"{rows:,} rows of more than {unfolded:,} bytes are too many")
            batches.append(batch)
        table = pa.Table.from_batches(batches, file.schema_arrow).cast(schema)
        table.validate(full=True)  # words that are none are found here, not when somebody first reads them
        return table.to_pandas()


def _unfolded(column: pa.Array) -> int:
    """Bytes of a column once each of its words is written out: those that come again take little room in the file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return column.nbytes
    lengths = pc.binary_length(column.dictionary)
    return column.nbytes + (pc.sum(pc.take(lengths, column.indices).cast(pa.int64())).as_py() or 0)


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        LeverError: if it is none.
    """
    return _understood(path, lambda: json.loads(read_bytes(path)))


def read_csv(path: Path, **settings: Any) -> pd.DataFrame:
    """The table of a CSV file; settings as for `pandas.read_csv`.

    Raises:
        LeverError: if it is none.
    """
    import pandas as pd

    return _understood(path, lambda: pd.read_csv(io.BytesIO(read_bytes(path)), **settings))


def _understood(path: Path, read: Callable[[], Content]) -> Content:
    """What `read` returns. What the readers of damaged files raise depends on where the damage leads them."""
    check_file(path)
    try:
        return read()
    except OSError as error:
        if error.errno is not None:  # of the file system, not of the content
            raise
        reason = str(error)
    except MemoryError:
        reason = "it is too large for this machine's memory"
    except Exception as error:
        reason = str(error) or type(error).__name__
    raise LeverError(f"{shown(path)}: cannot be read: {' '.join(reason.split())[:300]}") from None
