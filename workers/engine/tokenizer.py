"""The checkpoint's tokenizer.json: prompts to token ids, token ids to pieces of text.

Uses the ``tokenizers`` package alone, since importing transformers takes seconds. Knows no torch.
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers

from farm.errors import ModelRefused
from workers.engine.detokenizer import BytePieces, Pieces


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes: printable ones as they are, others from U+0100 on.

    Source: GPT-2, Radford et al. 2019, ``bytes_to_unicode``.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class Tokenizer:
    """Encodes prompts and makes each sequence's ``Pieces``."""

    def __init__(self, path: Path) -> None:
        """Read tokenizer.json. Raises ModelRefused if it is missing or unreadable."""
        if not path.is_file():
            raise ModelRefused(f"{path.parent} has no tokenizer.json; save the checkpoint with its fast tokenizer")
        try:
            text = path.read_text(encoding="utf-8")
            decoder = json.loads(text).get("decoder") or {}
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception for a malformed file
            raise ModelRefused(f"{path} can't be read as a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bytes = _Bytes(self._tokenizer) if decoder.get("type") == "ByteLevel" else None

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer's own template adds."""
        ids: list[int] = self._tokenizer.encode(prompt).ids
        return ids

    def pieces(self) -> Pieces:
        """A fresh ``Pieces`` for one sequence."""
        return BytePieces(self._bytes) if self._bytes is not None else _DecodedPieces(self._tokenizer)


class _Bytes(dict[int, bytes]):
    """Bytes of each token, looked up on first use: a table of 250,880 would take half a second to build."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        super().__init__({id: b"" for id, added in tokenizer.get_added_tokens_decoder().items() if added.special})
        self._tokenizer = tokenizer
        self._alphabet = _byte_alphabet()

    def __missing__(self, token: int) -> bytes:
        piece = self._tokenizer.id_to_token(token) or ""
        try:
            self[token] = bytes(self._alphabet[char] for char in piece)
        except KeyError:  # an added token is written as it is
            self[token] = piece.encode()
        return self[token]


class _DecodedPieces:
    """Text of any other vocabulary: decode a growing window, and release it when it ends on a whole character."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._decode = tokenizer.decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._new()
        if text.endswith("�"):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def flush(self) -> str:
        return self._new()

    def _new(self) -> str:
        # Decoded with the tokens before it: a first token loses its leading space.
        before: str = self._decode(self._ids[self._start : self._read])
        text: str = self._decode(self._ids[self._start :])
        return text[len(before) :]
