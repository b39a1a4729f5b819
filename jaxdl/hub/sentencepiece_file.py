"""A SentencePiece `tokenizer.model`: a protocol buffer, read field by field."""

from collections.abc import Iterator
import dataclasses
from pathlib import Path
import struct
from typing import Any

from jaxdl.hub.files import HubError, map_file, short

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One token: its text, its score, and what it is for."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """What a model file says of its tokens and of the text that it expects.

    special: ids by transformers' names, of those that the model has. charsmap: how
    text is normalised, b"" for not at all.
    """

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    special: dict[str, int]
    charsmap: bytes
    prefix: bool
    remove_extra_spaces: bool
    escape_spaces: bool
    spaces_last: bool


def read_sentencepiece(path: Path) -> SentencePiece:
    """Reads a model file; HubError, naming it, for one that is not whole.

    Numbers of fields are those of sentencepiece_model.proto.
    """
    try:
        model = _message(map_file(path).tobytes())
        trainer, normaliser = (_message(_last(model, n, b"")) for n in (2, 3))
        pieces = tuple(_piece(_message(data)) for data in model.get(1, []))
        special = {
            name: _signed(_last(trainer, number, default))
            for name, (number, default) in SPECIAL.items()
        }
        found = SentencePiece(
            pieces,
            _last(trainer, 3, UNIGRAM),
            bool(_last(trainer, 35, 0)),
            {name: id for name, id in special.items() if id >= 0},
            _last(normaliser, 2, b""),
            bool(_last(normaliser, 3, 1)),
            bool(_last(normaliser, 4, 1)),
            bool(_last(normaliser, 5, 1)),
            bool(_last(trainer, 24, 0)),
        )
    except (struct.error, IndexError, TypeError, UnicodeDecodeError) as error:
        reason = short(str(error), quote=False)
        raise HubError(f"{path}: no whole SentencePiece model: {reason}") from error
    outside = [id for id in found.special.values() if id >= len(pieces)]
    texts = {piece.text for piece in pieces}
    if outside or not pieces or len(texts) < len(pieces):
        raise HubError(
            f"{path}: no whole SentencePiece model: {len(pieces)} pieces, of which "
            f"{len(pieces) - len(texts)} are there twice, special ids {found.special}"
        )
    return found


SPECIAL = {
    "unk_token": (40, 0),
    "bos_token": (41, 1),
    "eos_token": (42, 2),
    "pad_token": (43, 2**64 - 1),
}


def _piece(fields: dict[int, list[Any]]) -> Piece:
    text, score = _last(fields, 1, b""), _last(fields, 2, b"\0\0\0\0")
    (score,) = struct.unpack("<f", score)
    return Piece(text.decode(), score, _last(fields, 3, NORMAL))


def _last(fields: dict[int, list[Any]], number: int, default: Any) -> Any:
    """The value of a field that is there once; TypeError if it is of another type."""
    value = fields.get(number, [default])[-1]
    if type(value) is not type(default):
        raise TypeError(f"field {number}: a {type(default).__name__} is expected")
    return value


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _message(data: bytes) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for number, value in _fields(data):
        found.setdefault(number, []).append(value)
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers and values of a message: ints, or bytes that mean something else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
            case 1 | 5 as kind:
                value, at = _bytes(data, at, 8 if kind == 1 else 4)
            case 2:
                size, at = _varint(data, at)
                value, at = _bytes(data, at, size)
            case other:
                raise TypeError(f"{other} is no type of a field (at byte {at})")
        yield tag >> 3, value


def _bytes(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    if size > len(data) - at:
        raise IndexError(f"{size} bytes are declared and the file ends before")
    return data[at : at + size], at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value & 2**64 - 1, at
    raise TypeError(f"a number has more than ten bytes (at byte {at})")
