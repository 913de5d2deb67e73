import re

from lever_lib.composition import everyday_methods
from tests.benchmarks.__main__ import main


def test_benchmarks_run(capsys):
    main(["smoke", "--repeats", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 + 2 + 2 + 4 * len(everyday_methods())
    assert all(re.fullmatch(r".+ [0-9.e+-]+ \S.*", line) for line in lines), lines
    assert any(re.search(r"exhaustive exnonzero, 625 combination", line) for line in lines)
