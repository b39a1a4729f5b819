"""What is kept of a file's own words, and how names are listed."""

import numpy as np
import pytest

from jaxdl.hub import HubError
from jaxdl.hub.files import (
    listed,
    map_file,
    needs,
    parse_json,
    read_json,
    release,
    short,
)


def test_a_missing_package_names_the_extra():
    with pytest.raises(
        ImportError, match=r'a file needs gone_: pip install "jaxdl\[hub'
    ):
        needs("gone_", "a file")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b'{"a": 1, "a": 2}', b"[" * 10**5]
)
def test_json_that_does_not_parse_names_the_file(tmp_path, text):
    path = tmp_path / "config.json"
    with pytest.raises(HubError, match="config.json"):
        parse_json(text, path)
    path.write_bytes(text)
    with pytest.raises(HubError, match="config.json"):
        read_json(path)


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(HubError, match="gone.json: cannot be read"):
        read_json(tmp_path / "gone.json")
    with pytest.raises(HubError):
        read_json(tmp_path)


def test_words_of_a_file_are_short_and_harmless():
    assert len(short("x" * 1000)) < 130
    assert "\x1b" not in short("\x1b[2J", quote=False)


def test_names_with_different_notes_have_their_own_lines():
    notes = {"h.0": "a", "h.1": "b", "h.2": "b", "h.3": "b"}
    assert listed(notes, notes) == ["h.0: a", "h.1 ... h.3 (3 names): b"]


@pytest.mark.parametrize("start, size", [(0, 100_000), (5, 70_000), (4097, 10), (9, 0)])
def test_bytes_that_were_let_go_are_read_again(tmp_path, start, size):
    content = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8)
    (tmp_path / "a").write_bytes(content.tobytes())
    data = map_file(tmp_path / "a")
    np.testing.assert_array_equal(data, content)
    release(data, start, size)
    np.testing.assert_array_equal(data, content)
    release(content, start, size)  # an array that is no file is left alone
