"""Tests of how the parts of a form are found."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taillift.service.http.multipart import FormPart, form_boundary, form_parts
from taillift.service.problems import MalformedError

NAMED = b'Content-Disposition: form-data; name="images"; filename="a.png"'


def form_of(*contents: bytes, head: bytes = NAMED, boundary: bytes = b"b") -> bytes:
    parts = [b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n" for data in contents]
    return b"".join(parts) + b"--" + boundary + b"--\r\n"


def parts_of(body: bytes, pieces: Sequence[int] = ()) -> list[FormPart]:
    """Return the parts of a form that comes in pieces of these sizes, and then the rest."""

    async def come() -> AsyncIterator[bytes]:
        start = 0
        for size in pieces:
            yield body[start : start + size]
            start += size
        yield body[start:]

    async def read() -> list[FormPart]:
        return [part async for part in form_parts(come(), b"b")]

    return asyncio.run(read())


@given(
    st.lists(st.lists(st.sampled_from([b"\r\n--b", b"--", b"\r", b"\n", b"X", b" "]))),
    st.lists(st.integers(0, 9)),
)
def test_every_file_comes_back_as_it_was_sent(pieces: list[list[bytes]], sizes: list[int]) -> None:
    files = [b"".join(file).replace(b"--b\r\n", b"").replace(b"--b--", b"") for file in pieces]
    files = [file for file in files if b"--b\r\n" not in file and b"--b--" not in file]
    files = [file for file in files if not file.endswith(b"--b")]
    assert [part.data for part in parts_of(form_of(*files), sizes)] == files


def test_almost_boundaries_are_data() -> None:
    data = b"\r\n--bX" * 1_000 + b"\r\n--b " + b"\r\n--b-" + b"\n--b--"
    assert [part.data for part in parts_of(form_of(data, b"", data))] == [data, b"", data]


def test_a_preamble_and_an_epilogue_are_not_data() -> None:
    body = b"This is a form.\r\n" + form_of(b"x") + b"\r\n--b\r\nnot a part\r\n--b--"
    assert [part.data for part in parts_of(body)] == [b"x"]


def test_an_image_needs_no_file_name_if_its_type_says_so() -> None:
    head = b"content-type: Image/JPEG\r\ncontent-disposition: form-data; name=images"
    assert parts_of(form_of(b"x", head=head)) == [FormPart("images", "", b"x")]
    head = b"Content-Disposition: form-data; name=images"
    assert parts_of(form_of(b"x", head=head)) == [FormPart("images", None, b"x")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "does not begin with its boundary"),
        (b"--c\r\n", "does not begin with its boundary"),
        (form_of(b"x")[:-4], "before its closing boundary"),
        (form_of(b"x", head=b"x" * 9_000), "within 8,192 bytes"),
        (form_of(b"x", head=b"no colon"), "no name or no colon"),
        (form_of(b"x", head=b"X: y"), "no name in Content-Disposition"),
        (b"--b\r\n\r\nx\r\n--b--", "no headers"),
        (form_of(b"x", head=NAMED + b";" * 65), "more than 64 parameters"),
        (form_of(b"x", head=NAMED + b'; a="%s"' % (b";" * 4_000)), "more than 64 parameters"),
        (form_of(b"x", head=NAMED + b"; a=b" * 1_500), "more than 64 parameters"),
    ],
)
def test_what_is_not_a_form_is_malformed(body: bytes, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        parts_of(body)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", f"multipart/form-data; boundary={71 * 'b'}"]
)
def test_a_boundary_is_needed_and_not_long(kind: str) -> None:
    with pytest.raises(MalformedError, match="boundary"):
        form_boundary(kind)
    assert form_boundary('multipart/form-data; charset=x; boundary="a b"') == b"a b"


def test_semicolons_in_a_file_name_are_a_part_of_it() -> None:
    head = b'Content-Disposition: form-data; name="images"; filename="%s"' % (b"a;b" * 60)
    assert parts_of(form_of(b"x", head=head)) == [FormPart("images", "a;b" * 60, b"x")]


def test_a_header_may_go_on_in_the_next_line() -> None:
    head = b'Content-Disposition: form-data;\r\n name="images";\r\n\tfilename="a.png"'
    assert parts_of(form_of(b"x", head=head)) == [FormPart("images", "a.png", b"x")]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (b"; filename*=utf-8''gr%C3%BCn.png", "grün.png"),
        (b"; FileName*=\"ISO-8859-1'de'gr%FCn.png\"", "grün.png"),
        (b"; filename*=UTF-8''b.png; filename=a.png", "a.png"),
    ],
)
def test_a_file_may_have_a_coded_name_alone(more: bytes, name: str) -> None:
    head = b"Content-Disposition: form-data; name=images" + more
    assert parts_of(form_of(b"x", head=head)) == [FormPart("images", name, b"x")]


def test_a_content_type_has_few_parameters() -> None:
    kind = "multipart/form-data; boundary=b"
    assert form_boundary(kind + "; a=b" * 60) == b"b"
    with pytest.raises(MalformedError, match="more than 64 parameters"):
        form_boundary(kind + "; a=b" * 3_000)


def test_a_form_may_come_in_any_two_pieces() -> None:
    files = [b"\r\n--bX", b""]
    body = b"A form.\r\n" + form_of(*files) + b"\r\n--b\r\nnot a part"
    for first in range(len(body)):
        assert [part.data for part in parts_of(body, [first])] == files


def test_a_form_may_come_byte_by_byte() -> None:
    body = form_of(b"\r\n--bX\r\n", b"y" * 200)
    assert parts_of(body, [1] * len(body)) == parts_of(body)


def test_an_empty_part_may_share_its_line_end_with_the_delimiter() -> None:
    body = form_of(b"").replace(b"\r\n\r\n\r\n--b--", b"\r\n\r\n--b--")
    assert [part.data for part in parts_of(body)] == [b""]


def test_headers_end_before_the_next_delimiter() -> None:
    body = b"--b\r\nX: y\r\n--b\r\n" + NAMED + b"\r\n\r\nx\r\n--b--"
    with pytest.raises(MalformedError, match="no headers"):
        parts_of(body)
