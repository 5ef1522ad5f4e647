"""Special tokens of our own: one id each, with rows that begin where their names' words are."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from raysys.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


def add_special_tokens(
    model: "PreTrainedModel", tokenizer: "Tokenizer", seeds: Mapping[str, str]
) -> list[int]:
    """Give each key of `seeds` (token -> seed text) one id in `tokenizer` and rows in `model`.

    A new token's input row, and its row and bias in an LM head of its own, are the mean of the
    rows of the seed text's sub-tokens. Tokens that the tokenizer has already keep their id and
    rows, so a model saved with them can be passed again. Both are changed in place; save both.
    Returns the ids [len(seeds)] in the order of `seeds`.

    Source: LARR §2.1, its reconstruction's decision on new rows.

    Raises:
        ConfigError: a token that is blank or has white space in it, or a seed text without a
            sub-token that the model knows. Nothing is changed then.
    """
    known = tokenizer.get_vocab()
    new = [token for token in seeds if token not in known]
    pieces = {token: _pieces(tokenizer, token, seeds[token]) for token in new}
    # Imported here: transformers takes seconds.
    from transformers import AddedToken

    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in new], special_tokens=True
    )
    ids = special_token_ids(tokenizer, list(seeds))
    table = model.get_input_embeddings().weight
    if len(tokenizer) > len(table):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = [embeddings.weight]
    if head is not None and head.weight is not embeddings.weight:
        rows.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        rows.append(head.bias)
    place = dict(zip(seeds, ids, strict=True))
    with torch.no_grad():
        for weight in rows:
            for token, sources in pieces.items():
                weight[place[token]] = weight[sources].float().mean(0).to(weight.dtype)
    return ids


def special_token_ids(tokenizer: "Tokenizer", tokens: Sequence[str]) -> list[int]:
    """The id of each of `tokens`, in order.

    Raises:
        ArtifactError: the tokenizer splits one of them, i.e. it was never added.
    """
    ids = []
    for token in tokens:
        found = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(found) != 1 or found[0] == tokenizer.unk_token_id:
            raise ArtifactError(
                f"the tokenizer in {tokenizer.name_or_path or 'memory'} has no token {token!r}; "
                "use a model folder whose tokenizer was saved with it (RUN/hf of llm/pretrain)"
            )
        ids.append(int(found[0]))
    return ids


def _pieces(tokenizer: "Tokenizer", token: str, seed: str) -> list[int]:
    """Ids of the seed text's sub-tokens."""
    if not token or any(character.isspace() for character in token):
        raise ConfigError(f"special token {token!r}: it must have no white space and not be empty")
    ids = tokenizer(seed, add_special_tokens=False)["input_ids"]
    ids = [int(value) for value in ids if value != tokenizer.unk_token_id]
    if not ids:
        raise ConfigError(f"special token {token!r}: its seed text {seed!r} has no known sub-token")
    return ids
