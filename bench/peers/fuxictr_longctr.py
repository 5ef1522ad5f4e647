"""Train a model of FuxiCTR's model_zoo/LongCTR; print its speed and quality as one JSON line.

Run with the Python of the peer's environment, which has no raysys:

    python fuxictr_longctr.py DATA SIZES.json

DATA is a folder written by `write_fuxictr_dataset`, SIZES.json an object with the fields of
`Sizes`. FuxiCTR's dataset, collator, model, optimiser and `fit` loop run unchanged; this file
only reads the clock and ends the loop. The time runs from the end of the last warm-up step to
the end of the last timed step, data loading included.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from model_zoo.LongCTR.DIN.DIN import DIN
from model_zoo.LongCTR.ETA.ETA import ETA
from model_zoo.LongCTR.longctr_dataloader import LongCTRDataLoader
from model_zoo.LongCTR.SDIM.SDIM import SDIM
from model_zoo.LongCTR.SIM.SIM import SIM
from model_zoo.LongCTR.TWIN.TWIN import TWIN

GROUP = "group_id"
MODELS = {model.__name__: model for model in (DIN, SIM, ETA, SDIM, TWIN)}


@dataclass(frozen=True)
class Sizes:
    """What is trained and for how long; defaults are FuxiCTR's own.

    attention_hidden_units to din_use_softmax concern DIN, short_seq_len and attention_dim all
    others, topk SIM, ETA and TWIN, hash_bits ETA and SDIM, num_hashes and l2_norm SDIM.
    """

    steps: int
    model: str = "DIN"
    warmup_steps: int = 5
    embedding_dim: int = 64
    attention_hidden_units: tuple[int, ...] = (64,)
    attention_hidden_activations: str = "Dice"
    din_use_softmax: bool = False
    short_seq_len: int = 50
    attention_dim: int = 64
    topk: int = 50
    hash_bits: int = 32
    num_hashes: int = 1
    l2_norm: bool = False
    dnn_hidden_units: tuple[int, ...] = (500, 500, 500)
    dnn_activations: str = "ReLU"
    max_len: int = 50
    batch_size: int = 8192
    learning_rate: float = 1e-3
    # 0 loads in the training process; otherwise that many loader processes.
    num_workers: int = 4
    threads: int = 1
    shuffle: bool = True
    seed: int = 2019
    # AUC, log loss and, with groups, gAUC on valid.parquet after the timed steps.
    evaluate: bool = False


class Measured:
    """A clock before a model of FuxiCTR: stops `fit` after the warm-up and the timed steps."""

    def measure(self, warmup_steps: int, steps: int) -> None:
        """Set the number of steps; call before `fit`."""
        self._warmup_steps = warmup_steps
        self._last_step = warmup_steps + steps
        self.losses: list[torch.Tensor] = []
        self.samples = 0
        self.begin = self.end = time.perf_counter()

    def train_step(self, batch_data):
        """One step of FuxiCTR, then the book-keeping."""
        loss = super().train_step(batch_data)
        self.losses.append(loss.detach())
        if len(self.losses) == self._warmup_steps:
            self.begin = time.perf_counter()
        elif len(self.losses) > self._warmup_steps:
            self.samples += len(batch_data[2])
        if len(self.losses) == self._last_step:
            self.end = time.perf_counter()
            self._stop_training = True
        return loss

    def evaluate_metrics(self, y_true, y_pred, metrics, group_id=None):
        """FuxiCTR's metrics; the scores are kept."""
        self.scores = y_pred
        return super().evaluate_metrics(y_true, y_pred, metrics, group_id)

    def load_weights(self, checkpoint):
        """Nothing: `fit` ends by loading its best checkpoint, and a measurement makes none."""


def loader(data: Path, feature_map: FeatureMap, split: str, sizes: Sizes) -> LongCTRDataLoader:
    """FuxiCTR's loader of one split."""
    return LongCTRDataLoader(
        feature_map,
        str(data / f"{split}.parquet"),
        str(data / "user_info.parquet"),
        str(data / "item_info.parquet"),
        batch_size=sizes.batch_size,
        shuffle=sizes.shuffle and split == "train",
        num_workers=sizes.num_workers,
        max_len=sizes.max_len,
    )


def build(data: Path, sizes: Sizes) -> tuple[FeatureMap, BaseModel]:
    """The feature map and a freshly initialised model."""
    feature_map = FeatureMap("data", str(data))
    params = {"embedding_dim": sizes.embedding_dim, "group_id": GROUP}
    feature_map.load(str(data / "feature_map.json"), params)
    metrics = ["AUC", "logloss"]
    if GROUP in feature_map.features:
        metrics.append("gAUC")
    else:
        feature_map.group_id = None
    # Every model ignores the options that it does not know.
    options = {k: list(v) if isinstance(v, tuple | list) else v for k, v in asdict(sizes).items()}
    model = type(sizes.model, (Measured, MODELS[sizes.model]), {})(
        feature_map,
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=metrics,
        verbose=0,
        model_root=str(data),
        **options,
    )
    return feature_map, model


def save_weights(model: BaseModel, path: Path) -> None:
    """All parameters and buffers as an .npz of plain arrays under FuxiCTR's names."""
    np.savez(path, **{name: value.numpy() for name, value in model.state_dict().items()})


@dataclass(frozen=True)
class Outputs:
    """Files to write, all optional: the weights before and after training (.npz), and the
    probabilities of valid.parquet in its order (.npy), which need `Sizes.evaluate`.
    """

    weights_before: Path | None = None
    weights_after: Path | None = None
    scores: Path | None = None


def run(data: Path, sizes: Sizes, outputs: Outputs) -> dict:
    """Train and return the figures."""
    torch.set_num_threads(sizes.threads)
    seed_everything(sizes.seed)
    feature_map, model = build(data, sizes)
    if outputs.weights_before:
        save_weights(model, outputs.weights_before)
    train = loader(data, feature_map, "train", sizes)
    model.measure(sizes.warmup_steps, sizes.steps)
    total = sizes.warmup_steps + sizes.steps
    # Never evaluates inside the loop: eval_steps lies beyond the last step.
    model._eval_steps = total + 1
    model.fit(train, epochs=total)
    if outputs.weights_after:
        save_weights(model, outputs.weights_after)
    seconds = model.end - model.begin
    result = {
        "samples_per_s": model.samples / seconds,
        "seconds": seconds,
        "samples": model.samples,
        "losses": [float(loss) for loss in model.losses],
        "n_params": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("fuxictr", "torch", "numpy", "pandas")},
        "sizes": asdict(sizes),
    }
    if sizes.evaluate:
        metrics = model.evaluate(loader(data, feature_map, "valid", sizes))
        result["valid"] = {name: float(value) for name, value in metrics.items()}
        if outputs.scores:
            np.save(outputs.scores, model.scores)
    return result


def main() -> None:
    """Read the arguments, train, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("sizes", type=Path)
    parser.add_argument("--weights-before", type=Path, help="write the initial weights (.npz)")
    parser.add_argument("--weights-after", type=Path, help="write the trained weights (.npz)")
    parser.add_argument("--scores", type=Path, help="write the probabilities of valid (.npy)")
    arguments = parser.parse_args()
    sizes = Sizes(**json.loads(arguments.sizes.read_text(encoding="utf-8")))
    outputs = Outputs(arguments.weights_before, arguments.weights_after, arguments.scores)
    result = run(arguments.data, sizes, outputs)
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
