"""Writing safetensors in one pass: each byte is hashed on its way to the file."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 22


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> tuple[int, str]:
    """Write a safetensors file without a second copy in memory; gives its size and sha256.

    Tensors go one by one to the CPU. Tensors that share memory are written each in full.
    """
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as handle:

        def put(block: bytes | memoryview) -> None:
            digest.update(block)
            handle.write(block)

        put(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            raw = memoryview(flat.numpy())
            for offset in range(0, len(raw), _CHUNK):
                put(raw[offset : offset + _CHUNK])
        size = handle.tell()
    return size, digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    return load_file(path)
