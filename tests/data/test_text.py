from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text):
    characters = data.Characters.of(text)
    tokens = characters.encode(text)
    assert characters.decode(tokens) == text
    assert tokens.max() == characters.size - 1 and tokens.min() == 0


def test_an_unknown_character_is_an_error():
    with pytest.raises(ValueError, match=r"alphabet of 2, got \['z'\]"):
        data.Characters.of("ab").encode("abz")


@given(st.integers(5, 60), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
def test_windows_are_pieces_of_the_text_with_their_next_tokens(
    length, seq, batch, step
):
    windows = data.TextWindows(np.arange(length), seq, batch, seed=1)
    drawn = windows(step)
    assert drawn["inputs"].shape == (batch, seq)
    np.testing.assert_array_equal(drawn["targets"], drawn["inputs"] + 1)
    again = data.TextWindows(np.arange(length), seq, batch, seed=1)(step)
    np.testing.assert_array_equal(drawn["inputs"], again["inputs"])


def test_every_place_of_the_text_is_drawn_in_the_end():
    windows = data.TextWindows(np.arange(8), 3, 50)
    assert set(windows(0)["inputs"][:, 0]) == {0, 1, 2, 3, 4}


@given(st.integers(5, 60), st.integers(1, 4), st.integers(1, 3))
def test_an_epoch_counts_every_target_once(length, seq, batch):
    counted = np.zeros(length)
    for drawn, weights in data.TextWindows(np.arange(length), seq, batch).epoch():
        np.add.at(counted, drawn["targets"], weights)
    assert counted[0] == 0 and (counted[1:] == 1).all()


def test_the_text_is_real_and_the_same_each_time(tmp_path):
    text = data.text()
    assert len(text) > 200_000 and 'The "if" statement' in text
    assert data.text() == text
    path = tmp_path / "book.txt"
    path.write_text("naïve", encoding="utf-8")
    assert data.text(path) == "naïve"


def test_too_short_a_text_is_an_error():
    with pytest.raises(ValueError, match="more than seq_len=4 tokens"):
        data.TextWindows(np.arange(4), 4, 1)
