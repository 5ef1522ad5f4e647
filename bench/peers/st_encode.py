"""Encode texts with sentence-transformers and print its speed, one JSON line a round.

Run with the Python of the peer's environment, which has no raysys:

    python st_encode.py MODEL_FOLDER TEXTS.json THREADS MAX_TOKENS POOLING VECTORS.npy

For every line on standard input it encodes all texts once, with the library's own defaults, and
prints one line; the first round also writes the vectors. Loading is outside the time.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Serve rounds until standard input ends."""
    folder, texts_file, threads, max_tokens, pooling, vectors = sys.argv[1:]
    torch.set_num_threads(int(threads))
    texts = json.loads(Path(texts_file).read_text(encoding="utf-8"))
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": "float32"})
    # Where a tokenizer has a chat template, a text would be sent through it.
    model[0].modality_config.pop("message", None)
    model.max_seq_length = int(max_tokens)
    if pooling == "last":
        # A folder that names no pooling gets that of means.
        model[1] = type(model[1])(model[1].embedding_dimension, "lasttoken")
    model.encode(texts[:64], show_progress_bar=False)
    for _ in sys.stdin:
        started, cpu = time.perf_counter(), time.process_time()
        values = model.encode(texts, show_progress_bar=False, normalize_embeddings=True)
        seconds = time.perf_counter() - started
        if not Path(vectors).exists():
            np.save(vectors, values)
        line = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - cpu,
            "version": version("sentence-transformers"),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
