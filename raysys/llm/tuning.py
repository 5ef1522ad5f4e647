"""Tuning a language model: all of its weights, or LoRA and the rows of new tokens; saving it."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor, nn

from raysys.errors import ArtifactError, ConfigError
from raysys.llm.backbones import Backbone
from raysys.llm.special_tokens import add_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer


class LoraOptions(BaseModel):
    """Low-rank adapters, scaled by alpha / rank.

    targets: every linear layer but the LM head, or the projections of attention alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["linear", "attention"] = "linear"


class TuningConfig(BaseModel):
    """What is trained, and how it is saved.

    method: full, or lora: adapters, and the rows of new tokens (input and LM head).
    lora: options of the adapters, None for full.
    save: merged, one plain model in RUN/hf; or adapter: RUN/hf is the model with the new rows
        only and RUN/adapter the LoRA, as vLLM takes them.
    checkpoint_activations: recompute each block backwards; memory for time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["full", "lora"] = "full"
    lora: LoraOptions = LoraOptions()
    save: Literal["merged", "adapter"] = "merged"
    checkpoint_activations: bool = False


def load_for_tuning(
    backbone: Backbone, kind: Literal["causal", "body"], tokens: Mapping[str, str]
) -> tuple["PreTrainedModel", "Tokenizer", list[int]]:
    """Model in float32 with an LM head (causal) or without (body), tokenizer, and the ids of the
    special `tokens`, which are added where they are missing.

    Raises:
        ArtifactError: weights or tokenizer do not load.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModelForCausalLM if kind == "causal" else AutoModel
    try:
        model = auto.from_pretrained(
            backbone.path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{backbone.spec}: does not load as a {'causal ' if kind == 'causal' else ''}language "
            f"model ({error})"
        ) from error
    tokenizer = backbone.tokenizer()
    ids = add_special_tokens(model, tokenizer, tokens)
    return model, tokenizer, ids


def tunable(model: "PreTrainedModel", new: Sequence[int], config: TuningConfig) -> nn.Module:
    """The model to train: itself, or wrapped by peft with everything else frozen.

    A checkpoint of the wrapped model holds only what is trained; the rest is the backbone's.

    Raises:
        ConfigError: LoRA with a rank beyond the model's width; lora.targets=attention of a model
            whose projections have other names than those of Llama.
    """
    if config.checkpoint_activations:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if config.method == "full":
        return model
    import peft

    width = int(model.config.hidden_size)
    if config.lora.rank > width:
        raise ConfigError(
            f"tuning.lora.rank={config.lora.rank} is beyond the model's width {width}"
        )
    rows = {name: list(new) for name in _token_tables(model)}
    if config.checkpoint_activations:
        model.enable_input_require_grads()
    wrapped = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            lora_dropout=config.lora.dropout,
            target_modules="all-linear" if config.lora.targets == "linear" else _attention(model),
            trainable_token_indices=rows if new else None,
        ),
    )
    frozen = {
        name for name, p in wrapped.named_parameters(remove_duplicate=False) if not p.requires_grad
    }
    _leave_out(wrapped, frozen)
    return cast(nn.Module, wrapped)


def _attention(model: nn.Module) -> list[str]:
    names = [name.rpartition(".")[2] for name, _ in model.named_modules()]
    found = [name for name in ("q_proj", "k_proj", "v_proj", "o_proj") if name in names]
    if not found:
        raise ConfigError(
            f"tuning.lora.targets=attention: {type(model).__name__} names no projection q_proj, "
            "k_proj, v_proj or o_proj; use targets=linear"
        )
    return found


def _token_tables(model: "PreTrainedModel") -> list[str]:
    """Names of the modules with a row per token; a head tied to the input rows is not listed."""
    rows, head = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [rows]
    if head is not None and head.weight is not rows.weight:
        wanted.append(head)
    return [name for name, module in model.named_modules() if any(module is w for w in wanted)]


def _leave_out(model: nn.Module, names: set[str]) -> None:
    """Keep the named entries out of state dicts, and do not miss them when one is loaded."""

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in names:
            state.pop(prefix + name, None)

    def forgive(module: nn.Module, found: Any) -> None:
        # Keys are those of the outermost module that is loaded, so ours are their endings.
        found.missing_keys[:] = [
            key
            for key in found.missing_keys
            if not any(key[i:] in names for i in (0, *_after_dots(key)))
        ]

    model.register_state_dict_post_hook(drop)
    model.register_load_state_dict_post_hook(forgive)


def _after_dots(key: str) -> list[int]:
    return [i + 1 for i, letter in enumerate(key) if letter == "."]


def save_tuned(
    trained: nn.Module,
    tokenizer: "Tokenizer",
    run: Path,
    config: TuningConfig,
    base: "PreTrainedModel",
    new: Sequence[int],
    home: Path,
) -> None:
    """Write `run`/hf, a plain Hugging Face folder, and `run`/adapter if that is asked for.

    trained: what `tunable` gave, trained, whole; merged in place. base: the backbone with its
    new tokens, untrained; its new rows are overwritten if adapters are saved. home: where `run`
    will stand, which an adapter says of its base.
    """
    model = cast(Any, trained)
    if config.method == "lora":
        adapter = _adapter(model)
        options = copy.deepcopy(model.peft_config["default"])
        model = model.merge_and_unload()
        if config.save == "adapter":
            _take_rows(base, model, new)
            model = base
            _save_adapter(run / "adapter", adapter, options, home / "hf")
    model.save_pretrained(run / "hf", safe_serialization=True)
    tokenizer.save_pretrained(run / "hf")


def _adapter(model: Any) -> dict[str, Tensor]:
    import peft

    state = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return {k: v.detach().cpu().clone() for k, v in state.items() if "lora_" in k}


def _take_rows(base: "PreTrainedModel", trained: "PreTrainedModel", new: Sequence[int]) -> None:
    for name in _token_tables(trained):
        wanted = cast(Tensor, base.get_submodule(name).weight)
        found = cast(Tensor, trained.get_submodule(name).weight)
        with torch.no_grad():
            wanted[list(new)] = found[list(new)].to(wanted)


def _save_adapter(folder: Path, state: dict[str, Tensor], options: Any, base: Path) -> None:
    """The LoRA alone: vLLM takes no trained token rows with an adapter."""
    options.trainable_token_indices = None
    options.inference_mode = True
    options.base_model_name_or_path = str(base.absolute())
    folder.mkdir()
    options.save_pretrained(folder)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
