"""Warm or cold, packed or not, with Flower's waits or ours: rounds give the same bits."""

import sys

import pytest

from benchmarks.fast_rounds import OFF, ROOT, measured


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="copies are Linux's")
def test_the_fast_path_and_the_plain_one_train_the_same_weights() -> None:
    # Two sites with the same split each time, on a real SuperLink; two rounds.
    plain = measured(ROOT, ["--cold"], OFF, sites=2, rounds=2)[2]
    fast = measured(ROOT, [], {}, sites=2, rounds=2)[2]
    assert fast == plain
