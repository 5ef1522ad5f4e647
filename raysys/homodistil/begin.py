"""The teacher, and what students begin as: a copy, random weights, or fewer layers (§5)."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from raysys.errors import ArtifactError
from raysys.homodistil.groups import LLAMA, Attn, Kind
from raysys.llm.backbones import Backbone


def load_teacher(backbone: Backbone) -> nn.Module:
    """The model as its folder says it is, in float32, dropout off, attention written out.

    Raises:
        ArtifactError: it does not load.
    """
    import transformers

    names = backbone.config.get("architectures") or ["AutoModel"]
    auto = {
        "ForMaskedLM": transformers.AutoModelForMaskedLM,
        "ForCausalLM": transformers.AutoModelForCausalLM,
    }
    kind = next((c for tail, c in auto.items() if names[0].endswith(tail)), transformers.AutoModel)
    try:
        net: nn.Module = kind.from_pretrained(
            backbone.path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            attn_implementation="eager",
        )  # fmt: skip
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"{backbone.spec}: does not load ({error})") from error
    return _still(net)


def random_student(
    teacher: nn.Module, goal: Mapping[Kind, int], seed: int, attn: Attn = "heads"
) -> nn.Module:
    """A model of the shape that is to be reached, its weights drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = type(teacher)(_config(teacher, goal, attn))  # type: ignore[call-arg]
    return _still(net.to(dtype=torch.float32))


def shallow_student(
    teacher: nn.Module, goal: Mapping[Kind, int], attn: Attn = "heads"
) -> tuple[nn.Module, list[int]]:
    """The teacher with fewer layers, evenly spread and the last among them; and which they are.

    As many as come nearest to the weights of the thin student, one at least.
    """
    with torch.device("meta"):
        wanted = _weights(type(teacher)(_config(teacher, goal, attn)))  # type: ignore[call-arg]
    net = copy.deepcopy(teacher)
    config: Any = net.config
    holder = _layers(net)
    layer, whole = _weights(holder[0]), _weights(net)
    total = len(holder)
    count = min(range(1, total + 1), key=lambda n: abs(whole - (total - n) * layer - wanted))
    kept = [round((n + 1) * total / count) - 1 for n in range(count)]
    left = [holder[n] for n in kept]
    for number, block in enumerate(left):
        attention = getattr(block, "self_attn", None)
        if attention is not None:
            attention.layer_idx = number
    del holder[:]
    holder.extend(left)
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[n] for n in kept]
    return net, kept


def _config(teacher: nn.Module, goal: Mapping[Kind, int], attn: Attn) -> Any:
    config: Any = copy.deepcopy(teacher.config)
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if config.model_type in LLAMA:
        config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        config.num_key_value_heads = goal["attn"]
    config.hidden_size, config.intermediate_size = goal["residual"], goal["ffn"]
    if attn == "heads":
        config.num_attention_heads = heads // groups * goal["attn"]
    return config


def _still(net: nn.Module) -> nn.Module:
    """Without dropout."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return net


def _layers(model: nn.Module) -> nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList))


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
