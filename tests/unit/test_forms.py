"""Forms are taken apart the same, wherever the network cuts them."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import MediaRefused
from api.forms import Form, boundary_of, clean_name
from farm.errors import InvalidRequest

pytestmark = pytest.mark.fast

BOUNDARY = b"b0undary"
# What a file must be able to hold: what looks like the end of its part, or nearly so.
LIKE_AN_END = st.sampled_from(
    [b"\r\n", b"--", b"\r\n--", b"--b0undary", b"\r\n--b0undar", b"\r\n--b0undarx", b"\r", b"\n"]
)
CONTENT = st.lists(st.binary(max_size=20) | LIKE_AN_END, max_size=12).map(b"".join)


def body(content: bytes, purpose: bytes = b"batch") -> bytes:
    head = b"--b0undary\r\nContent-Disposition: form-data; name="
    return (
        head
        + b'"purpose"\r\n\r\n'
        + purpose
        + b"\r\n"
        + head
        + b'"file"; filename="a.jsonl"\r\nContent-Type: application/jsonl\r\n\r\n'
        + content
        + b"\r\n--b0undary--\r\n"
    )


@given(CONTENT, st.lists(st.integers(1, 40), min_size=1))
def test_a_file_comes_through_whole_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    """Its bytes are those that were sent, also when they look like a boundary; fields are found beside it."""
    if b"\r\n--b0undary" in b"\r\n" + content:
        return
    whole, form, got, place, number = body(content), Form(BOUNDARY, "file"), b"", 0, 0
    while place < len(whole):
        size = cuts[number % len(cuts)]
        got += form.feed(whole[place : place + size])
        place, number = place + size, number + 1
    assert got == content
    assert (form.fields, form.filename, form.is_complete) == ({"purpose": "batch"}, "a.jsonl", True)


@given(st.binary(max_size=300), st.integers(1, 50))
def test_whatever_comes_is_a_form_or_refused(data: bytes, size: int) -> None:
    """No input raises anything but InvalidRequest, and what is no form is never complete."""
    form = Form(BOUNDARY, "file")
    try:
        for place in range(0, len(data), size):
            form.feed(data[place : place + size])
    except InvalidRequest:
        return
    assert not form.is_complete or b"--b0undary--" in data


@given(st.text(max_size=400))
def test_filenames_are_harmless(name: str) -> None:
    """No folder, no control character, no quote, never empty and not too long."""
    clean = clean_name(name)
    assert 0 < len(clean) <= 255
    assert clean.strip(".")
    assert not set(clean) & set('/\\"\0\r\n\t')


@given(st.text(st.characters(max_codepoint=255), max_size=100))
def test_content_types_are_read_or_refused(text: str) -> None:
    """Whatever the header says: a boundary, or an error of ours."""
    for value in (text, f"multipart/form-data; {text}", f"multipart/form-data; boundary={text}"):
        try:
            boundary = boundary_of(value)
        except (InvalidRequest, MediaRefused):
            continue
        assert 0 < len(boundary) <= 70


@given(st.binary(max_size=100))
def test_headers_of_parts_are_read_or_refused(value: bytes) -> None:
    """Whatever a part says of itself: a field, the file, or an error of ours."""
    form = Form(BOUNDARY, "file")
    for kind in (b"", b"form-data; name=", b"form-data; name=file; filename=", b"form-data; name*=utf-8''"):
        part = b"--b0undary\r\ncontent-disposition: " + kind + value + b"\r\n\r\nx\r\n--b0undary--\r\n"
        with suppress(InvalidRequest):
            form.feed(part)
        form = Form(BOUNDARY, "file")
