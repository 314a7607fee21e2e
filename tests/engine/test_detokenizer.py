"""Text streams in whole characters of any script, and stop strings never leak."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Plain
from tokenizers import decoders, models

from benchmarks.byte_bpe import EOS, FIRST_BYTE, byte_tokenizer
from workers.engine.detokenizer import Detokenizer
from workers.engine.tokenizer import Tokenizer

pytestmark = pytest.mark.fast

VOCAB = 700


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE with tokens of one and two bytes."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_tokenizer(VOCAB).save(str(path))
    return Tokenizer(path)


def stream(tokenizer: Tokenizer, ids: list[int], *stops: str) -> list[str]:
    """The pieces in which the ids' text comes, the tail last; ends at a stop string."""
    detokenizer = Detokenizer(tokenizer.pieces(), stops)
    pieces = []
    for id in ids:
        pieces.append(detokenizer.push(id))
        if detokenizer.stopped:
            break
    return [*pieces, detokenizer.flush()]


@given(text=st.text(max_size=40))
def test_any_text_streams_back_as_it_was(tokenizer: Tokenizer, text: str) -> None:
    """The pieces join to the text, whatever the script."""
    assert "".join(stream(tokenizer, tokenizer.encode(text))) == text


@pytest.mark.parametrize(
    "text", ["漢字仮名交じり文", "한국어 문장", "🌾🚜👩🏽‍🌾 und so", "नमस्ते दुनिया", "مرحبا بالعالم", "naïve façade"]
)
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    """Every prefix of the stream is a prefix of the text."""
    ids = tokenizer.encode(text)
    assert len(ids) > len(text) / 2
    shown = ""
    for piece in stream(tokenizer, ids):
        shown += piece
        assert text.startswith(shown)
    assert shown == text


@given(ids=st.lists(st.integers(0, VOCAB + 50), max_size=30))
def test_any_tokens_give_the_text_that_decode_gives(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Broken UTF-8, special tokens and ids without a token read as the tokenizer's own decode reads them."""
    expected = byte_tokenizer(VOCAB).decode([id for id in ids if id < VOCAB])
    assert "".join(stream(tokenizer, ids)) == expected


def test_a_character_that_is_never_completed_comes_as_a_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    """Half a character is held back, then replaced by U+FFFD in the tail."""
    half = tokenizer.encode("🌾")[:2]
    assert stream(tokenizer, half) == ["", "", "\ufffd"]


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    """A special token neither shows nor breaks a character apart."""
    assert stream(tokenizer, [FIRST_BYTE + ord("a"), EOS, FIRST_BYTE + ord("b")]) == ["a", "", "b", ""]


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_is_cut_before_the_first_stop_string_and_nothing_of_it_is_shown(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    """Whatever the overlap of text and stop strings, the stream is the text up to the stop that is completed first."""
    ids = [FIRST_BYTE + ord(char) for char in text]
    expected = text
    for end in range(len(text) + 1):
        starts = [at for stop in stops if (at := text[:end].find(stop)) >= 0]
        if starts:
            expected = text[: min(starts)]
            break
    assert "".join(stream(tokenizer, ids, *stops)) == expected


def test_a_stop_string_across_characters_of_many_bytes_is_found(tokenizer: Tokenizer) -> None:
    """A stop string of emoji is found although each is several tokens."""
    assert "".join(stream(tokenizer, tokenizer.encode("one 🌾🚜 two"), "🌾🚜")) == "one "


def test_text_that_only_began_a_stop_string_is_released(tokenizer: Tokenizer) -> None:
    """What was held back comes as soon as it can't become the stop string any more, or as the tail."""
    ids = [FIRST_BYTE + byte for byte in b"xENy EN"]
    assert stream(tokenizer, ids, "END") == ["x", "", "", "ENy", " ", "", "", "EN"]


def test_a_vocabulary_that_is_not_of_bytes_streams_through_its_own_decoder(tmp_path: Path) -> None:
    """A tokenizer with another decoder gives the text that its decode gives."""
    words = {"▁once": 0, "▁upon": 1, "▁a": 2, "▁time": 3, "s": 4, "<unk>": 5}
    plain = Plain(models.WordLevel(words, unk_token="<unk>"))
    plain.decoder = decoders.Metaspace()
    plain.save(str(tmp_path / "tokenizer.json"))
    ids = [0, 1, 2, 3, 4]
    assert "".join(stream(Tokenizer(tmp_path / "tokenizer.json"), ids)) == plain.decode(ids) == "once upon a times"
