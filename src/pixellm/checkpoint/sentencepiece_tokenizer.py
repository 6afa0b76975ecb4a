"""SentencePiece files to fast tokenizers, with the ids of the slow ones.

The tokenizer that is built encodes each stretch between two added tokens by itself, as the slow
LLaMA tokenizer does; transformers' own conversion joins them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from pixellm.checkpoint.model_files import read_json

_NORMAL = 1
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"


def read_sentencepiece(path: Path) -> Any:
    """Read a ``tokenizer.model`` file.

    Returns:
        SentencePiece's ``ModelProto``: pieces with score and type, ``trainer_spec`` and
        ``normalizer_spec``.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no tokenizer at {path}; copy the file tokenizer.model.")
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    try:
        model = import_protobuf().ModelProto.FromString(path.read_bytes())
        if not model.pieces:
            raise ValueError("it holds no pieces")
    except (DecodeError, ValueError) as error:
        raise ValueError(
            f"{path} is no SentencePiece model or is cut short; copy it again."
        ) from error
    return model


def build_fast_tokenizer(directory: Path, extra_tokens: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer from ``tokenizer.model`` and the JSON files beside it.

    The tokens of ``added_tokens.json`` swallow the whitespace on both sides, as they do in the
    slow tokenizer; the begin, end and unknown tokens do not.

    Args:
        directory: holds ``tokenizer.model`` and, where there are any, ``added_tokens.json``,
            ``special_tokens_map.json`` and ``tokenizer_config.json``.
        extra_tokens: tokens to add behind those, where they are missing.
    """
    model = read_sentencepiece(directory / "tokenizer.model")
    special = _special_tokens(directory)
    tokenizer = _build_backend(model, unknown=special["unk_token"])
    plain = dict.fromkeys(special.values())
    known = {entry.piece for entry in model.pieces}
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


def _build_backend(model: Any, unknown: str) -> Tokenizer:
    algorithm, byte_fallback = model.trainer_spec.model_type, model.trainer_spec.byte_fallback
    if algorithm == _BPE:
        vocabulary = {entry.piece: i for i, entry in enumerate(model.pieces)}
        backend: Any = models.BPE(
            vocabulary,
            _merges(model, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    elif algorithm == _UNIGRAM:
        scored = [(entry.piece, entry.score) for entry in model.pieces]
        unknown_id = [piece for piece, _ in scored].index(unknown)
        backend = models.Unigram(scored, unknown_id, byte_fallback)
    else:
        raise ValueError("The tokenizer's algorithm is neither unigram nor BPE.")
    tokenizer = Tokenizer(backend)
    tokenizer.normalizer = normalizers.Sequence(_normalizers(model.normalizer_spec))
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return tokenizer


def _merges(model: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair that makes a normal piece, best pieces first."""
    scored = []
    for entry in model.pieces:
        piece = entry.piece
        if entry.type != _NORMAL:
            continue
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        known = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        scored += [(-entry.score, pair) for pair in known]
    return [pair for _, pair in sorted(scored, key=lambda entry: entry[0])]


def _normalizers(spec: Any) -> list[Any]:
    charsmap = spec.precompiled_charsmap
    steps: list[Any] = [normalizers.Precompiled(charsmap)] if charsmap else []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return [*steps, normalizers.Replace(" ", _SPACE)]


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _special_tokens(directory: Path) -> dict[str, str]:
    """Texts of the begin, end, unknown and pad tokens; the unknown token pads where none is."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = _read_if_there(directory / name)
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
    entries = _read_if_there(directory / "added_tokens.json")
    return [t for t in sorted(entries, key=lambda t: int(entries[t])) if t not in known]


def _check_ids(directory: Path, tokenizer: Tokenizer) -> None:
    for token, index in _read_if_there(directory / "added_tokens.json").items():
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{directory / 'added_tokens.json'} gives {token!r} the id {index}, but the "
                f"tokens before it end at {tokenizer.token_to_id(token)}; the file is incomplete."
            )
