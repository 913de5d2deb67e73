import pytest

from lever_lib.seeding import stream


def test_a_name_is_a_stream_of_its_own():
    first = stream(0, "training", "X1", 3).random(4)
    assert (stream(0, "training", "X1", 3).random(4) == first).all()
    for other in (stream(1, "training", "X1", 3), stream(0, "training", "X1", 4), stream(0, "training", "X13")):
        assert (other.random(4) != first).all()


def test_parts_of_a_name_do_not_run_together():
    assert stream(0, "a", "bc").random() != stream(0, "ab", "c").random()


def test_a_stream_needs_a_name():
    with pytest.raises(ValueError, match="name"):
        stream(0)
