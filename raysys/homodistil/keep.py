"""Which units are left, and models that are physically smaller by the others (§2.5)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from raysys.errors import ConfigError
from raysys.homodistil.groups import LLAMA, Group

Keep = dict[str, Tensor]  # group -> ascending int64 indices of the units that are kept


def everything(groups: Sequence[Group]) -> Keep:
    """Nothing is lost."""
    return {group.name: torch.arange(group.size) for group in groups}


def slices(groups: Sequence[Group], keep: Keep) -> dict[str, dict[int, Tensor]]:
    """Parameter -> dimension -> indices of the rows that are kept."""
    found: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        units = keep[group.name]
        for member in group.members:
            rows = (units[:, None] * member.width + torch.arange(member.width)).flatten()
            here = found.setdefault(member.parameter, {})
            before = here.get(member.dim, rows[:0])  # of the heads before, where each is a group
            here[member.dim] = torch.cat([before, rows + member.offset])
    return found


def sliced(values: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The kept rows of every dimension, a copy."""
    for dim, rows in dims.items():
        values = values.index_select(dim, rows.to(values.device))
    return values.clone()


def shrink(model: nn.Module, groups: Sequence[Group], keep: Keep) -> dict[str, dict[int, Tensor]]:
    """Make the model physically smaller, in place; returns what was kept of which parameter.

    Modules get new parameters, which optimisers do not know: slice their state alike.

    Raises:
        ConfigError: layers would keep unequally many units, which no stock model can hold.
    """
    _equal(groups, keep)
    kept = slices(groups, keep)
    names: dict[int, str] = {id(p): name for name, p in model.named_parameters()}
    fresh: dict[str, nn.Parameter] = {}
    for module in model.modules():
        for own, parameter in list(module.named_parameters(recurse=False)):
            name = names[id(parameter)]
            if name not in kept:
                continue
            if name not in fresh:  # a tied one is met twice
                values = sliced(parameter.detach(), kept[name])
                fresh[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            setattr(module, own, fresh[name])
    for module in model.modules():  # now that all have their new weights
        _resize(module, thinner=any(group.part for group in groups))
    _reconfigure(model, groups, keep)
    return kept


def _resize(module: nn.Module, *, thinner: bool) -> None:
    """What a module says of itself follows its weights; thinner: heads are, and none is lost."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif hasattr(module, "all_head_size"):  # attention of BERT
        module.all_head_size = module.query.weight.shape[0]
        if thinner:
            module.attention_head_size = module.all_head_size // module.num_attention_heads
        else:
            module.num_attention_heads = module.all_head_size // module.attention_head_size


def _equal(groups: Sequence[Group], keep: Keep) -> None:
    for kind in ("ffn", "attn"):
        counts = {len(keep[group.name]) for group in groups if group.kind == kind}
        if len(counts) > 1:
            raise ConfigError(f"{kind}: layers keep {sorted(counts)} units; all need equally many")


def _reconfigure(model: nn.Module, groups: Sequence[Group], keep: Keep) -> None:
    """The sizes of the config, so that a stock model can be built from it."""
    config = model.config
    count = {group.kind: len(keep[group.name]) for group in groups}
    groups_before = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    ratio = config.num_attention_heads // groups_before
    if config.model_type in LLAMA:
        width = getattr(config, "head_dim", None)
        config.head_dim = width or config.hidden_size // config.num_attention_heads
        config.num_key_value_heads = count["attn"]
    config.hidden_size = count["residual"]
    config.intermediate_size = count["ffn"]
    if not any(group.part for group in groups):
        config.num_attention_heads = ratio * count["attn"]
