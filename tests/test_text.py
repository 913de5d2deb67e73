import os
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from lever_lib import minilm, text
from lever_lib.artifacts import ROOT
from lever_lib.envs.rewards import COMPONENTS
from lever_lib.errors import LeverError
from lever_lib.text import EMBEDDED, encode, fingerprint, known_words, remembered


def test_unit_vectors_and_known_cosines():
    sentences = [COMPONENTS["gold"].sentence, "collect gold quickly", "make coffee"]
    vectors = encode(sentences)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.736, abs=0.005)
    assert vectors[0] @ vectors[2] < 0.2


@pytest.fixture
def encoder(tmp_path, request):
    """A name under which no encoder is found."""
    folder = tmp_path / "encoder"
    if request.param == "an empty folder":
        folder.mkdir()
        return str(folder)
    if request.param == "a folder without a model":
        folder.mkdir()
        (folder / "readme.txt").write_text("no model")
        return str(folder)
    return request.param


NOWHERE = ["nobody/no-such-model", "nosuchmodel", "a/b/c", "two words", "/nowhere/at/all", "~/nowhere"]


@pytest.mark.parametrize("encoder", ["an empty folder", "a folder without a model", *NOWHERE], indirect=True)
def test_an_encoder_that_is_not_there_is_one_line(encoder):
    with pytest.raises(LeverError) as caught:
        encode(["a"], encoder)
    message = str(caught.value)
    assert message.startswith(f"search.encoder = {encoder!r}: ")
    assert "\n" not in message


def test_a_folder_whose_model_is_broken_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LeverError, match=r"search\.encoder = .*: cannot be loaded") as caught:
        encode(["a"], str(tmp_path))
    assert "\n" not in str(caught.value)


MISSING = """
import sys
from lever_lib.errors import LeverError
from lever_lib.text import encode
for encoder in sys.argv[1:]:
    try:
        encode(["a"], encoder)
    except LeverError:
        continue
    raise SystemExit(f"{encoder} was found")
print(*(name for name in ("sentence_transformers", "transformers", "torch") if name in sys.modules))
"""


def test_a_missing_encoder_is_known_before_anything_heavy_is_imported(tmp_path):
    arguments = [sys.executable, "-c", MISSING, "nobody/no-such-model", str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_a_folder_is_known_by_its_files(tmp_path):
    assert fingerprint(EMBEDDED) is None
    assert fingerprint("nobody/no-such-model") is None
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(str(tmp_path)) != before
    (tmp_path / "config.json").write_text("{}")
    assert fingerprint(str(tmp_path)) == before


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "memory" / "sentences.sqlite"


@pytest.fixture
def forgetful(monkeypatch):
    """Counts what the encoder is asked, by sentence."""
    asked = []

    def counted(sentences):
        asked.extend(sentences)
        return minilm.encode(sentences)

    monkeypatch.setattr(text, "encode", counted)
    return asked


def recall(sentences, file, encoder=EMBEDDED):
    return remembered(sentences, f"{encoder} {fingerprint(encoder)}", text.encode, 384, file)


def test_what_was_encoded_once_is_remembered(memory, forgetful):
    first = recall(["gold", "lever", "gold"], memory)
    assert forgetful == ["gold", "lever"]
    assert np.array_equal(first, minilm.encode(["gold", "lever", "gold"]))
    again = recall(["lever", "quick", "gold"], memory)
    assert forgetful == ["gold", "lever", "quick"], "only what is new is encoded"
    assert np.array_equal(again[[2, 0]], first[:2]), "to the last bit"


def test_each_encoder_has_a_memory_of_its_own(memory, forgetful, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("a model")
    for encoder in (EMBEDDED, str(folder), str(folder)):
        recall(["gold"], memory, encoder)
    assert forgetful == ["gold", "gold"]
    (folder / "config.json").write_text("another model")
    recall(["gold"], memory, str(folder))
    assert forgetful == ["gold"] * 3, "a folder with other files is another encoder"


def test_without_a_file_nothing_is_remembered(forgetful):
    for _ in range(2):
        recall(["gold"], None)
    assert forgetful == ["gold", "gold"]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_memory_is_done_without(memory, forgetful, content):
    memory.parent.mkdir()
    memory.write_bytes(content)
    for _ in range(2):
        assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))


def test_a_memory_of_another_shape_is_done_without(memory, forgetful):
    memory.parent.mkdir()
    with sqlite3.connect(memory) as database:
        database.execute("CREATE TABLE sentences (something TEXT)")
    database.close()
    assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))


def test_a_folder_that_cannot_be_written_to_costs_no_answer(memory, forgetful):
    memory.parent.mkdir()
    memory.parent.chmod(0o500)
    try:
        if os.access(memory.parent, os.W_OK):
            pytest.skip("whoever runs this may write everywhere")
        assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))
    finally:
        memory.parent.chmod(0o700)


def test_a_file_in_the_place_of_the_folder_costs_no_answer(memory, forgetful):
    memory.parent.write_text("a file")
    assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))


def test_the_encoder_knows_words_and_no_misspellings():
    assert {"gold", "switch"} <= known_words()
    assert "tresure" not in known_words()


def test_a_stored_vector_of_another_length_is_done_without(memory, forgetful):
    remembered(["gold"], f"{EMBEDDED} {fingerprint(EMBEDDED)}", lambda _: np.zeros((1, 3), np.float32), 3, memory)
    assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))


def test_a_bit_that_is_flipped_in_a_memory_is_noticed(memory, forgetful):
    vector = recall(["gold"], memory)[0].tobytes()
    content = memory.read_bytes()
    at = content.index(vector)
    for bit in (7, 8 * 100 + 3):
        memory.write_bytes(
            content[: at + bit // 8] + bytes([content[at + bit // 8] ^ 1 << bit % 8]) + content[at + bit // 8 + 1 :]
        )
        assert recall(["gold"], memory)[0].tobytes() == vector
    assert forgetful == ["gold"] * 3


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE sentences SET vector = 'abc'",
        "UPDATE sentences SET vector = NULL",
        "UPDATE sentences SET vector = zeroblob(2000000)",
        "DROP TABLE sentences; CREATE VIEW sentences AS "
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT i AS encoder, '' AS sentence, zeroblob(1000) AS vector, '' AS checksum FROM n",
    ],
)
def test_a_made_up_memory_is_done_without(memory, forgetful, harm):
    recall(["gold"], memory)
    with sqlite3.connect(memory) as database:
        database.executescript(harm)
    database.close()
    assert np.array_equal(recall(["gold"], memory), minilm.encode(["gold"]))
    assert forgetful == ["gold", "gold"]


@pytest.mark.parametrize(
    "files",
    [
        {"modules.json": "5"},
        {"modules.json": "null"},
        {"config.json": "5"},
        {"modules.json": '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Normalize"}]'},
    ],
)
def test_a_folder_that_holds_nonsense_is_one_line(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(LeverError, match=r"search.encoder = .*: cannot be loaded \(.+\)"):
        text.encode(["gold"], str(tmp_path))


def test_a_folder_without_a_model_is_not_searched_through():
    with pytest.raises(LeverError, match="is a folder without a sentence-transformers model"):
        fingerprint("/")
    assert fingerprint("~nobody-of-this-name") is None
