"""Safetensors files of ours, as a run's trajectory and its snapshot are.

A length, a head in JSON, and arrays one behind the other in the order of the head. Its metadata: `format`; `run`, a
JSON object that says what the arrays are of; `sha256`, of that object's text and all bytes of the arrays. They are
written by hand, because safetensors orders metadata otherwise from call to call, and wants all arrays at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

from zoreward.journal.lines import parse

MAX_HEAD = 64 << 20
# Bytes that are read at once.
CHUNK = 64 << 20

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "U32": 4, "U8": 1}
_NO_SUM = "0" * 64

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → dtype, as safetensors calls it, and shape."""


def write_tensors(
    file: BinaryIO, kind: str, about: Mapping[str, Any], layout: Layout, pieces: Iterable[bytes | memoryview]
) -> None:
    """Write a file.

    Args:
        file: where to, from its beginning.
        kind: its format.
        about: what the arrays are of; for JSON.
        layout: of the arrays.
        pieces: the bytes of all of them, little-endian, in that order.
    """
    text = json.dumps(about, allow_nan=False)
    digest = hashlib.sha256(text.encode("ascii"))

    def head(checksum: str) -> bytes:
        metadata = {"format": kind, "run": text, "sha256": checksum}
        head = json.dumps({"__metadata__": metadata, **entries_of(layout)}).encode("ascii")
        head += b" " * (-len(head) % 8)
        return len(head).to_bytes(8, "little") + head

    file.write(head(_NO_SUM))
    for piece in pieces:
        digest.update(piece)
        file.write(piece)
    file.seek(0)
    file.write(head(digest.hexdigest()))


def read_head(file: BinaryIO, *kinds: str, largest: int = MAX_HEAD) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the arrays of a file are of, and its entries, and leave the file where their bytes begin.

    All bytes have been read once by then, and their checksum is right.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= largest:
        raise ValueError("its header has an impossible length")
    try:
        entries = parse(file.read(length))
    except ValueError as error:
        raise ValueError(f"its header is damaged ({error})") from None
    metadata = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") not in kinds:
        raise ValueError(f"its format is not {kinds[0]}")
    text = metadata.get("run")
    digest = hashlib.sha256(str(text).encode("utf-8", "replace"))
    start = file.tell()
    while piece := file.read(CHUNK):
        digest.update(piece)
    if not isinstance(text, str) or digest.hexdigest() != metadata.get("sha256"):
        raise ValueError("its checksum is wrong")
    file.seek(start)
    return parse(text), entries


def entries_of(layout: Layout) -> dict[str, Any]:
    """Return what the head says of arrays that stand one behind the other."""
    entries, end = {}, 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + _BYTES[dtype] * math.prod(shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return entries
