"""A byte-level tokenizer as Bloom's, of any size, made on the spot."""

from __future__ import annotations

import itertools

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
EOS = 2
FIRST_BYTE = len(SPECIAL)
"""The token of byte 0; byte b has token FIRST_BYTE + b."""


def byte_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE as Bloom's: special tokens, 256 bytes, then pairs of bytes as far as the vocabulary goes."""
    # Printable bytes stand for themselves, the others for the characters from U+0100 on.
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    chars = [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]
    letters = [char for char in chars if char.isascii()]
    pairs = itertools.islice(itertools.product(letters, letters), max(0, vocab - FIRST_BYTE - 256))
    merges = [(left, right) for left, right in pairs]
    tokens = [*SPECIAL, *chars, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    tokenizer.add_special_tokens(SPECIAL)
    split = pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
