"""SentencePiece files to fast tokenizers, with the ids of the slow ones.

Reads ``tokenizer.model`` (a protocol buffer) itself, so that no further package is needed, and
builds a tokenizer that encodes each stretch between two added tokens by itself, as the slow LLaMA
tokenizer does. It knows no model, no prompts and no hub.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

_NORMAL = 1
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` file holds.

    Attributes:
        pieces: text, score and type of each id; type 1 is a normal piece.
        algorithm: 1 unigram, 2 byte-pair encoding.
        byte_fallback: unknown characters become their bytes.
        charsmap: compiled normalisation rules; empty for none.
        adds_prefix: a space is put in front of every text.
        trims_spaces: leading, trailing and repeated spaces are dropped.
    """

    pieces: tuple[tuple[str, float, int], ...]
    algorithm: int
    byte_fallback: bool
    charsmap: bytes
    adds_prefix: bool
    trims_spaces: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a ``tokenizer.model`` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of an algorithm other than unigram and BPE.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no tokenizer at {path}; copy the file tokenizer.model.")
    try:
        return _parse_model(path.read_bytes())
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no SentencePiece model or is cut short; copy it again."
        ) from error


def build_fast_tokenizer(directory: Path, extra_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer from ``tokenizer.model`` and the JSON files beside it.

    The tokens of ``added_tokens.json`` swallow the whitespace on both sides, as they do in the
    slow tokenizer; the begin, end and unknown tokens do not.

    Args:
        directory: holds ``tokenizer.model`` and, where there are any, ``added_tokens.json``,
            ``special_tokens_map.json`` and ``tokenizer_config.json``.
        extra_tokens: tokens to add behind those, where they are missing.

    Raises:
        FileNotFoundError: ``tokenizer.model`` is missing.
        ValueError: a damaged file, or added tokens whose ids leave a gap.
    """
    model = read_sentencepiece(directory / "tokenizer.model")
    special = _special_tokens(directory, model)
    tokenizer = _build_backend(model, unknown=special["unk_token"])
    plain = dict.fromkeys(special.values())
    known = {piece for piece, _, _ in model.pieces}
    inside = [AddedToken(t, special=True, normalized=False) for t in plain if t in known]
    tokenizer.add_special_tokens(inside)
    added = _added_tokens(directory, known)
    added += [t for t in extra_tokens if t not in known and t not in added]
    tokenizer.add_special_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, special=True, normalized=False) for t in added]
    )
    _check_ids(directory, tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def _fields(buffer: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) fields of one protocol-buffer message."""
    position = 0

    def read_varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(buffer):
        tag = read_varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, read_varint()
            continue
        size = {1: 8, 5: 4}[kind] if kind != 2 else read_varint()
        if position + size > len(buffer):
            raise IndexError
        yield tag >> 3, buffer[position : position + size]
        position += size


def _parse_model(buffer: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(buffer):
        if number == 1:
            fields = dict(_fields(value))
            score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
            pieces.append((fields[1].decode(), score, fields.get(3, _NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    if not pieces:
        raise IndexError
    return SentencePieceModel(
        tuple(pieces),
        algorithm=trainer.get(3, _UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        adds_prefix=bool(normalizer.get(3, 1)),
        trims_spaces=bool(normalizer.get(4, 1)),
    )


def _build_backend(model: SentencePieceModel, unknown: str) -> Tokenizer:
    if model.algorithm == _BPE:
        vocabulary = {piece: i for i, (piece, _, _) in enumerate(model.pieces)}
        backend: Any = models.BPE(
            vocabulary,
            _merges(model, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    elif model.algorithm == _UNIGRAM:
        scored = [(piece, score) for piece, score, _ in model.pieces]
        unknown_id = [piece for piece, _ in scored].index(unknown)
        backend = models.Unigram(scored, unknown_id, model.byte_fallback)
    else:
        raise ValueError("The tokenizer's algorithm is neither unigram nor BPE.")
    tokenizer = Tokenizer(backend)
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def _merges(model: SentencePieceModel, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair that makes a normal piece, best pieces first."""
    scored = []
    for piece, score, kind in model.pieces:
        if kind != _NORMAL:
            continue
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        scored += [(-score, pair) for pair in known]
    return [pair for _, pair in sorted(scored, key=lambda entry: entry[0])]


def _normalizers(model: SentencePieceModel) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.trims_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.adds_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return [*steps, normalizers.Replace(" ", _SPACE)]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again.") from error
    return values if isinstance(values, dict) else {}


def _special_tokens(directory: Path, model: SentencePieceModel) -> dict[str, str]:
    """Texts of the begin, end, unknown and pad tokens; the unknown token pads where none is."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = _read_json(directory / name)
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = values.get(role)
            text = value.get("content") if isinstance(value, dict) else value
            if text:
                found[role] = text
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = defaults | found
    return {"pad_token": found["unk_token"]} | found


def _added_tokens(directory: Path, known: set[str]) -> list[str]:
    """Tokens of ``added_tokens.json`` in the order of their ids."""
    entries = _read_json(directory / "added_tokens.json")
    return [t for t in sorted(entries, key=lambda t: int(entries[t])) if t not in known]


def _check_ids(directory: Path, tokenizer: Tokenizer) -> None:
    for token, index in _read_json(directory / "added_tokens.json").items():
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{directory / 'added_tokens.json'} gives {token!r} the id {index}, but the "
                f"tokens before it end at {tokenizer.token_to_id(token)}; the file is incomplete."
            )
