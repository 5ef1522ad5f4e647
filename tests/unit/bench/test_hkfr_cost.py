"""The measurement of HKFR's language model runs, and its arms do the same work."""

import numpy as np
import pytest

from bench.hkfr_cost import _names, run


def test_names_differ_and_begin_alike() -> None:
    names = _names(np.random.default_rng(0), 4096, 200)
    assert len({tuple(name) for name in names}) == 200
    assert len({name[0] for name in names}) < 150


@pytest.mark.slow
def test_a_small_run_has_all_figures() -> None:
    found = run(
        candidates=16,
        prompt_tokens=20,
        prompts=1,
        samples=12,
        row_tokens=64,
        batch_rows=2,
        rounds=1,
    )
    assert found["trie_nodes"] <= found["name_tokens"]
    assert found["row_fill"]["packed"] > found["row_fill"]["padded"]
    assert all(value > 0 for part in ("ms_per_prompt", "real_tokens_per_s")
               for value in found[part].values())  # fmt: skip
