"""Packing of texts: every text once, rows never over-full, little left empty."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from raysys.errors import ConfigError
from raysys.llm.packing import Packed, attention_keeps_apart, pack


@given(st.lists(st.integers(1, 20), max_size=60))
def test_every_text_lies_in_exactly_one_row_that_holds_it(lengths: list[int]) -> None:
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Two rows that would fit into one would have been one.
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 20


def test_texts_of_usual_lengths_leave_two_percent_empty() -> None:
    lengths = np.random.default_rng(0).integers(5, 120, 2000).tolist()
    assert sum(lengths) / (512 * len(pack(lengths, 512))) > 0.98


def test_a_text_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="21 tokens"):
        pack([3, 21], 20)


def test_rows_say_where_each_text_begins_and_ends() -> None:
    texts = [[5, 6, 7], [8], [9, 4]]
    packed = Packed.of(texts, [[0, 1], [2]], pad=1, weights=[[0, 1, 1], [0], [0, 2]])
    assert packed.ids.tolist() == [[5, 6, 7, 8], [9, 4, 1, 1]]
    assert packed.positions.tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert packed.ids.flatten()[packed.last].tolist() == [7, 8, 4]
    assert packed.weights is not None
    assert packed.weights.tolist() == [[0, 1, 1, 0], [0, 2, 0, 0]]


def test_a_model_whose_texts_see_each_other_is_refused() -> None:
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    attention_keeps_apart(LlamaModel(LlamaConfig(**sizes)), 50)
    with pytest.raises(ConfigError, match="see each other"):
        attention_keeps_apart(BertModel(BertConfig(**sizes)), 50)
