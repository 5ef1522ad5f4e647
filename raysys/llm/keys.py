"""Keys of the vector table: the same text under the same model has the same key anywhere."""

import hashlib
import unicodedata
from collections.abc import Sequence
from json.encoder import encode_basestring

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from raysys.data.manifest import canonical_json
from raysys.errors import DataError

Keys = npt.NDArray[np.uint64]  # [N, 2], the high and the low half of each 16-byte key

NO_KEYS: Keys = np.zeros((0, 2), np.uint64)
KEY_TYPE = pa.binary(16)


class VectorIdentity(BaseModel):
    """All that a vector depends on beside its text. The engine that computes it is no part.

    weights: sha256 of the backbone's files; adapter: sha256 of an adapter's; head: name of a
    projection after pooling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str
    adapter: str | None = None
    pooling: str
    head: str | None = None
    max_tokens: int
    normalise: bool
    template: str


def text_keys(identity: VectorIdentity, texts: Sequence[str]) -> Keys:
    """Keys [N, 2] of N texts: the first 16 bytes of the sha256 of the canonical JSON of the
    identity and the NFC form of the text.

    Raises:
        DataError: a text that is not valid Unicode.
    """
    # One text is hashed into many keys, so the JSON around it is written once.
    marker = "\x00"
    body = canonical_json({**identity.model_dump(), "text": marker})
    head, tail = body.split(canonical_json(marker))
    start, end = hashlib.sha256(head.encode()), tail.encode()
    out = bytearray()
    for text in texts:
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        try:
            encoded = encode_basestring(text).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"text {text[:40]!r} is not valid Unicode ({error})") from error
        state = start.copy()
        state.update(encoded)
        state.update(end)
        out += state.digest()[:16]
    return keys_of_bytes(bytes(out))


def keys_of_bytes(raw: bytes | memoryview) -> Keys:
    """Keys [N, 2] of N × 16 bytes; the order of keys is the order of their bytes."""
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def keys_of_arrow(array: pa.FixedSizeBinaryArray) -> Keys:
    """Keys [N, 2] of an Arrow column without nulls."""
    begin = array.offset * 16
    return keys_of_bytes(memoryview(array.buffers()[1])[begin : begin + len(array) * 16])


def keys_to_arrow(keys: Keys, absent: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Arrow column binary(16) [N] of keys [N, 2]; null where `absent` [N] is true."""
    raw = pa.py_buffer(keys.astype(">u8").tobytes())
    if absent is None or not absent.any():
        return pa.FixedSizeBinaryArray.from_buffers(KEY_TYPE, len(keys), [None, raw])
    valid = pa.py_buffer(np.packbits(~absent, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(KEY_TYPE, len(keys), [valid, raw])


class SortedKeys:
    """Keys in ascending order, searched in bulk. high, low: [N], may be mapped from a file."""

    def __init__(self, high: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64]) -> None:
        self.high = high
        self.low = low

    def find(self, keys: Keys) -> npt.NDArray[np.int64]:
        """Places [M] of M keys; -1 where absent."""
        place = np.searchsorted(self.high, keys[:, 0])
        out = np.full(len(keys), -1, np.int64)
        open_rows = np.arange(len(keys))
        # Keys that share their high half stand side by side: step on until the low half fits.
        while len(open_rows):
            at = place[open_rows]
            inside = at < len(self.high)
            open_rows, at = open_rows[inside], at[inside]
            same = self.high[at] == keys[open_rows, 0]
            open_rows, at = open_rows[same], at[same]
            hit = self.low[at] == keys[open_rows, 1]
            out[open_rows[hit]] = at[hit]
            open_rows = open_rows[~hit]
            place[open_rows] += 1
        return out


def sort_keys(keys: Keys) -> npt.NDArray[np.int64]:
    """Order [N] that sorts keys [N, 2] by their bytes."""
    return np.lexsort((keys[:, 1], keys[:, 0]))


def distinct(keys: Keys) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(row of the first occurrence of each distinct key, for every row its place among them)."""
    if not len(keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = sort_keys(keys)
    ranked = keys[order]
    new = np.concatenate([[True], (ranked[1:] != ranked[:-1]).any(1)])
    inverse = np.empty(len(keys), np.int64)
    inverse[order] = np.cumsum(new) - 1
    return order[new], inverse
