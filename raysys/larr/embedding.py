"""e(x) = L2norm(MLP(h[last real token])): the language model as a text encoder (§2.2)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from raysys.llm.packing import Packed, last_hidden

_DENSE = ("2_Dense", "3_Dense")
_ACTIVATIONS = ("torch.nn.modules.activation.GELU", "torch.nn.modules.linear.Identity")


class EmbeddingHead(nn.Module):
    """MLP from width D to d_e: Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[n, D] -> [n, d_e]."""
        return self.second(nn.functional.gelu(self.first(x)))

    @torch.no_grad()
    def whiten(self, hidden: Tensor) -> None:
        """Begin where the vectors of the backbone's hidden states [N, D] differ most.

        Last hidden states of a language model point nearly the same way. The first layer takes
        their mean away and scales their principal directions alike before it mixes them, the
        second takes away what GELU adds; both mixtures stay random. Ours.
        """
        mean = hidden.double().mean(0)
        covariance = (hidden.double() - mean).T @ (hidden.double() - mean) / max(len(hidden) - 1, 1)
        values, directions = torch.linalg.eigh(covariance)
        # Directions that a few hundred texts cannot measure must not be blown up.
        scale = (values.clamp(min=0) + 0.01 * values.mean().clamp(min=1e-12)).rsqrt()
        white = (directions * scale) @ directions.T
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        weight = self.first.weight.double() @ white.to(self.first.weight.device)
        self.first.weight.copy_(weight)
        self.first.bias.copy_(-(weight @ mean))
        active = nn.functional.gelu(self.first(hidden.float())).mean(0)
        self.second.bias.copy_(-(self.second.weight @ active))

    def save(self, folder: Path, longest: int) -> None:
        """Write the head beside a model in `folder`, as sentence-transformers lays it out.

        modules.json names the steps: the model, last-token pooling (1_Pooling), the two layers
        (2_Dense, 3_Dense: config.json and model.safetensors with linear.weight, linear.bias),
        L2 normalisation. `raysys.llm.heads`, sentence-transformers and vLLM read that.
        """
        kinds = ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
        paths = ["", "1_Pooling", *_DENSE, "4_Normalize"]
        steps = [
            dict(idx=i, name=str(i), path=path, type=f"sentence_transformers.models.{kind}")
            for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ]
        _json(folder / "modules.json", steps)
        _json(folder / "sentence_bert_config.json", {"max_seq_length": longest})
        pooling = {"word_embedding_dimension": self.first.in_features}
        modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
        pooling |= {f"pooling_mode_{mode}": mode == "lasttoken" for mode in modes}
        for name in paths[1:]:
            (folder / name).mkdir(exist_ok=True)
        _json(folder / "1_Pooling" / "config.json", pooling)
        for name, act, layer in zip(_DENSE, _ACTIVATIONS, (self.first, self.second), strict=True):
            body: dict[str, Any] = dict(
                in_features=layer.in_features,
                out_features=layer.out_features,
                bias=True,
                activation_function=act,
            )
            _json(folder / name / "config.json", body)
            state = {f"linear.{k}": v.detach().contiguous() for k, v in layer.state_dict().items()}
            save_file(state, folder / name / "model.safetensors")


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


class EmbeddingModel(nn.Module):
    """A decoder's body and its embedding head."""

    def __init__(self, body: nn.Module, head: EmbeddingHead) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, packed: Packed) -> Tensor:
        """Unit vectors [n, d_e] of the texts in `packed`, in its order."""
        vectors = self.head(last_hidden(self.body, packed))
        return torch.nn.functional.normalize(vectors.float(), dim=-1)
