"""Special tokens: one id each, round trip, new rows from the words of their names."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from raysys.errors import ArtifactError, ConfigError
from raysys.llm.special_tokens import add_special_tokens, special_token_ids

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "cat", "dog", "menu"]
SEEDS = {"<poi>": "red cat", "<menu>": "menu", "</poi>": "cat green dog"}
SOURCES = {"<poi>": [5, 7], "<menu>": [9], "</poi>": [7, 6, 8]}
SIZES = dict(
    vocab_size=len(WORDS),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> BertTokenizer:
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    return BertTokenizer(str(tmp_path / "words.txt"))


def model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "encoder":
        return BertModel(BertConfig(**SIZES))
    tied = LlamaConfig(**SIZES, tie_word_embeddings=kind == "tied")
    return LlamaForCausalLM(tied)


@pytest.mark.parametrize("kind", ["tied", "untied", "encoder"])
def test_new_rows_are_the_mean_of_their_seed_and_old_rows_stay(
    kind: str, tokenizer: BertTokenizer
) -> None:
    changed = model(kind)
    before = changed.get_input_embeddings().weight.detach().clone()
    head = changed.get_output_embeddings()
    head_before = None if head is None else head.weight.detach().clone()
    ids = add_special_tokens(changed, tokenizer, SEEDS)
    assert ids == [10, 11, 12]
    pairs = [(before, changed.get_input_embeddings().weight)]
    if head_before is not None:
        pairs.append((head_before, changed.get_output_embeddings().weight))
        same = pairs[0][1] is pairs[1][1]
        assert same == (kind == "tied")
    for old, new in pairs:
        assert torch.equal(new[: len(WORDS)], old)
        for token, row in zip(SEEDS, ids, strict=True):
            expected = sum(old[i] for i in SOURCES[token]) / len(SOURCES[token])
            assert torch.allclose(new[row], expected, atol=1e-6)
    assert changed.config.vocab_size == 13


def test_one_id_each_and_round_trip_through_a_folder(
    tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    changed = model("untied")
    ids = add_special_tokens(changed, tokenizer, SEEDS)
    changed.save_pretrained(tmp_path / "hf")
    tokenizer.save_pretrained(tmp_path / "hf")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert special_token_ids(loaded, list(SEEDS)) == ids
    text = "<poi> <menu> red dog </poi>"
    encoded = loaded(text, add_special_tokens=False)["input_ids"]
    assert encoded == [ids[0], ids[1], 5, 8, ids[2]]
    assert loaded.decode(encoded) == text
    assert loaded.decode(encoded, skip_special_tokens=True) == "red dog"
    # Glued to words, as a template may have them, they are still one id each.
    glued = loaded("red<menu>dog</poi>", add_special_tokens=False)["input_ids"]
    assert glued == [5, ids[1], 8, ids[2]]

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    rows = again.get_input_embeddings().weight.detach().clone()
    assert add_special_tokens(again, loaded, {"<menu>": "dog", "<loc>": "red"}) == [ids[1], 13]
    assert torch.equal(again.get_input_embeddings().weight[: len(rows)], rows)


def test_a_padded_embedding_table_is_not_shrunk(tokenizer: BertTokenizer) -> None:
    torch.manual_seed(0)
    padded = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 64}))
    add_special_tokens(padded, tokenizer, SEEDS)
    table = padded.get_input_embeddings().weight
    assert len(table) == 64
    assert torch.allclose(table[11], table[9])


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({"<a b>": "red"}, "white space"),
        ({"": "red"}, "not be empty"),
        ({"<ok>": "red", "<x>": "zebra"}, "no known sub-token"),
        ({"<x>": "  "}, "no known sub-token"),
    ],
)
def test_impossible_tokens_change_nothing(
    seeds: dict[str, str], message: str, tokenizer: BertTokenizer
) -> None:
    changed = model("tied")
    with pytest.raises(ConfigError, match=message):
        add_special_tokens(changed, tokenizer, seeds)
    assert len(tokenizer) == len(changed.get_input_embeddings().weight) == len(WORDS)


def test_tokenizer_without_the_tokens_is_named(tokenizer: BertTokenizer) -> None:
    with pytest.raises(ArtifactError, match=r"no token '<poi>'"):
        special_token_ids(tokenizer, ["<poi>"])
