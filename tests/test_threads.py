import threading

import pytest
import torch

from lever_lib.threads import one_torch_thread


@pytest.fixture
def three():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_torch_has_one_thread_and_then_as_many_as_before(three):
    with one_torch_thread():
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_who_is_done_first_leaves_the_others_their_one(three):
    inside, go_on, seen = threading.Barrier(3), threading.Event(), []

    def work(wait):
        with one_torch_thread():
            inside.wait()
            if wait:
                go_on.wait()
                seen.append(torch.get_num_threads())

    threads = [threading.Thread(target=work, args=(wait,)) for wait in (False, True)]
    for thread in threads:
        thread.start()
    inside.wait()
    threads[0].join()
    go_on.set()
    threads[1].join()
    assert seen == [1]
    fresh = []
    thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert fresh == [3]


def test_an_error_sets_it_back_too(three):
    with pytest.raises(ZeroDivisionError), one_torch_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3
