"""Which weights die together: dependency groups of BERT- and Llama-style models (§2.1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from raysys.errors import ConfigError

Kind = Literal["residual", "ffn", "attn"]
Attn = Literal["heads", "intra_head"]
BERT = ("bert",)
LLAMA = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class Member:
    """A dimension of a parameter whose slices of `width` rows or columns, from `offset` on, are the
    group's units."""

    parameter: str
    dim: int
    width: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """Units that every member loses together.

    kind: `residual`, one for the whole net, a unit being a dimension; `ffn`, of a layer, a neuron;
    `attn`, of a layer, a head with its queries, keys, values and outputs, or a key-value head with
    all its query heads. size: how many units there are. layer: −1 for the residual stream. part:
    of thinner heads, which side of which head the units are dimensions of: `qk.N` or `vo.N`.
    """

    kind: Kind
    layer: int
    size: int
    members: tuple[Member, ...]
    part: str = ""

    @property
    def name(self) -> str:
        """Unique in a model."""
        return ".".join(filter(None, (self.kind, str(self.layer) * (self.layer >= 0), self.part)))


# Of a layer: pattern of the rest of a parameter's name -> (kind, dim, unit) of each dimension.
_BERT_LAYER: dict[str, tuple[tuple[Kind, int, str], ...]] = {
    r"attention\.self\.(query|key|value)\.weight": (("attn", 0, "head"), ("residual", 1, "")),
    r"attention\.self\.(query|key|value)\.bias": (("attn", 0, "head"),),
    r"attention\.output\.dense\.weight": (("residual", 0, ""), ("attn", 1, "head")),
    r"attention\.output\.(dense\.bias|LayerNorm\.(weight|bias))": (("residual", 0, ""),),
    r"intermediate\.dense\.weight": (("ffn", 0, ""), ("residual", 1, "")),
    r"intermediate\.dense\.bias": (("ffn", 0, ""),),
    r"output\.dense\.weight": (("residual", 0, ""), ("ffn", 1, "")),
    r"output\.(dense\.bias|LayerNorm\.(weight|bias))": (("residual", 0, ""),),
}
_BERT_REST: dict[str, tuple[tuple[Kind, int, str], ...]] = {
    r"embeddings\.(word|position|token_type)_embeddings\.weight": (("residual", 1, ""),),
    r"embeddings\.LayerNorm\.(weight|bias)": (("residual", 0, ""),),
    r"pooler\.dense\.weight": (("residual", 0, ""), ("residual", 1, "")),
    r"pooler\.dense\.bias": (("residual", 0, ""),),
    r"cls\.predictions\.transform\.dense\.weight": (("residual", 0, ""), ("residual", 1, "")),
    r"cls\.predictions\.transform\.(dense\.bias|LayerNorm\.(weight|bias))": (("residual", 0, ""),),
    r"cls\.predictions\.decoder\.weight": (("residual", 1, ""),),
    r"cls\.predictions\.(decoder\.)?bias": (),
}
_LLAMA_LAYER: dict[str, tuple[tuple[Kind, int, str], ...]] = {
    r"self_attn\.q_proj\.weight": (("attn", 0, "queries"), ("residual", 1, "")),
    r"self_attn\.q_proj\.bias": (("attn", 0, "queries"),),
    r"self_attn\.(k|v)_proj\.weight": (("attn", 0, "head"), ("residual", 1, "")),
    r"self_attn\.(k|v)_proj\.bias": (("attn", 0, "head"),),
    r"self_attn\.o_proj\.weight": (("residual", 0, ""), ("attn", 1, "queries")),
    r"self_attn\.o_proj\.bias": (("residual", 0, ""),),
    r"self_attn\.(q|k)_norm\.weight": (),
    r"mlp\.(gate|up)_proj\.weight": (("ffn", 0, ""), ("residual", 1, "")),
    r"mlp\.(gate|up)_proj\.bias": (("ffn", 0, ""),),
    r"mlp\.down_proj\.weight": (("residual", 0, ""), ("ffn", 1, "")),
    r"mlp\.down_proj\.bias": (("residual", 0, ""),),
    r"(input|post_attention)_layernorm\.weight": (("residual", 0, ""),),
}
_LLAMA_REST: dict[str, tuple[tuple[Kind, int, str], ...]] = {
    r"embed_tokens\.weight": (("residual", 1, ""),),
    r"norm\.weight": (("residual", 0, ""),),
    r"lm_head\.weight": (("residual", 1, ""),),
}


def groups_of(model: nn.Module, attn: Attn = "heads") -> list[Group]:
    """All groups of a Hugging Face model; parameters that are tied occur once.

    attn: whole heads, or the dimensions of each, those of its queries and keys in one group and
    those of its values and outputs in another.

    Raises:
        ConfigError: an architecture that is not covered; names the model or the parameter.
    """
    config = model.config
    kind = str(getattr(config, "model_type", ""))
    if kind in BERT:
        layer, rest, prefix = _BERT_LAYER, _BERT_REST, r"(bert\.)?"
        at = re.compile(rf"{prefix}encoder\.layer\.(\d+)\.(.+)")
    elif kind in LLAMA:
        layer, rest, prefix = _LLAMA_LAYER, _LLAMA_REST, r"(model\.)?"
        at = re.compile(rf"{prefix}layers\.(\d+)\.(.+)")
    else:
        raise ConfigError(
            f"{type(model).__name__} (model type {kind or 'unknown'}) cannot be thinned; covered "
            f"are {', '.join((*BERT, *LLAMA))}"
        )
    heads, ratio, width = _heads(model)
    units = {"": 1, "head": width, "queries": ratio * width}
    sizes: dict[Kind, int] = {
        "residual": config.hidden_size, "ffn": config.intermediate_size, "attn": heads,
    }  # fmt: skip
    members: dict[tuple[Kind, int], list[Member]] = {}
    for name, _ in model.named_parameters():
        found = at.fullmatch(name)
        number, tail, known = (
            (-1, re.sub(f"^{prefix}", "", name), rest)
            if found is None
            else (int(found.group(2)), found.group(3), layer)
        )
        for group, dim, unit in _dimensions(model, name, tail, known):
            key = (group, -1 if group == "residual" else number)
            members.setdefault(key, []).append(Member(name, dim, units[unit]))
    order = sorted(members, key=lambda key: (key[1], key[0]))
    found = []
    for name_of, number in order:
        whole = Group(name_of, number, sizes[name_of], tuple(members[name_of, number]))
        thinner = attn == "intra_head" and name_of == "attn"
        found += list(_dimensions_of_heads(whole, width, kind)) if thinner else [whole]
    return found


def _dimensions_of_heads(group: Group, width: int, model_type: str) -> Iterator[Group]:
    if model_type not in BERT:
        raise ConfigError(
            f"attn=intra_head: {model_type} turns pairs of dimensions of a head by their place, "
            "which a stock model cannot be told; use attn=heads"
        )
    sides = {
        "qk": [m for m in group.members if re.search(r"\.(query|key)\.", m.parameter)],
        "vo": [m for m in group.members if not re.search(r"\.(query|key)\.", m.parameter)],
    }
    for head in range(group.size):
        for side, members in sides.items():
            own = tuple(Member(m.parameter, m.dim, 1, head * width) for m in members)
            yield Group("attn", group.layer, width, own, f"{side}.{head}")


def _dimensions(
    model: nn.Module, name: str, tail: str, known: dict[str, tuple[tuple[Kind, int, str], ...]]
) -> Iterator[tuple[Kind, int, str]]:
    for pattern, dimensions in known.items():
        if re.fullmatch(pattern, tail):
            yield from dimensions
            return
    raise ConfigError(f"{type(model).__name__}: no group knows the parameter {name}")


def _heads(model: nn.Module) -> tuple[int, int, int]:
    """(units of attention, query heads of each, width of a head)."""
    config: Any = model.config
    heads: int = config.num_attention_heads
    groups: int = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    for module in model.modules():
        # Between two events a BERT is not heads × width of a head wide.
        width = getattr(module, "attention_head_size", width)
    return groups, heads // groups, width
