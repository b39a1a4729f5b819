from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=8).filter(
    lambda found: max(found) > 1
)


def documents(lengths):
    """Tokens that say where they stand: 100 times the document, and the place in it."""
    tokens = [100 * (i + 1) + j for i, n in enumerate(lengths) for j in range(n)]
    return data.Tokens(np.array(tokens), np.cumsum(lengths))


@given(lengths, st.integers(1, 12), st.integers(1, 3), st.integers(0, 5))
def test_an_epoch_has_every_pair_once(lengths, seq_len, batch_size, seed):
    packed = data.PackedTokens(documents(lengths), seq_len, batch_size, seed)
    epochs = 2
    steps = -(-epochs * packed.pairs // (batch_size * seq_len))
    batches = [packed(step) for step in range(steps)]
    inputs = np.concatenate([b["inputs"].ravel() for b in batches])
    expected = sorted(
        100 * (i + 1) + j for i, n in enumerate(lengths) for j in range(n - 1)
    )
    for epoch in inputs[: epochs * packed.pairs].reshape(epochs, -1):
        assert sorted(epoch) == expected


@given(lengths, st.integers(1, 12), st.integers(0, 10**6))
def test_pairs_are_neighbours_and_segments_documents(lengths, seq_len, step):
    batch = data.PackedTokens(documents(lengths), seq_len, 2)(step)
    np.testing.assert_array_equal(batch["targets"], batch["inputs"] + 1)
    for row in range(2):
        inputs, segments = batch["inputs"][row], batch["segment_ids"][row]
        positions = batch["positions"][row]
        starts = np.flatnonzero(positions == 0)
        assert starts[0] == 0 and segments[0] == 1
        same = np.diff(segments) == 0
        # Within a segment tokens and positions go on by one; else one begins.
        assert (np.diff(inputs)[same] == 1).all() and (
            np.diff(positions)[same] == 1
        ).all()
        assert (np.diff(segments)[~same] == 1).all()
        np.testing.assert_array_equal(starts[1:], np.flatnonzero(~same) + 1)


@given(st.integers(0, 10**6))
def test_a_batch_is_a_function_of_seed_and_step_for_any_number_of_processes(step):
    source = documents([5, 2, 9, 1, 4])
    whole = data.PackedTokens(source, 7, 4, seed=3)
    whole(11)
    parts = [
        data.PackedTokens(source, 7, 4, seed=3, process=(index, 2))(step)
        for index in range(2)
    ]
    for name, rows in whole(step).items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), rows)


def test_what_is_written_is_mapped_back(tmp_path):
    texts = ["ab", "", "cde"]
    written = data.write_tokens(
        tmp_path / "t",
        texts,
        lambda text: [ord(c) for c in text],
        eos=0,
        progress=False,
    )
    assert written.tokens.dtype == np.uint16
    opened = data.Tokens.open(tmp_path / "t")
    rows = [opened[i].tolist() for i in range(len(opened))]
    assert rows == [[97, 98, 0], [0], [99, 100, 101, 0]]
    wide = data.write_tokens(
        tmp_path / "w", ["x"], lambda _: [70_000, 1], progress=False
    )
    assert wide[0].tolist() == [70_000, 1]


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    encode = lambda text: [len(text)] * 3  # noqa: E731
    data.write_tokens(tmp_path / "t", ["a", "bb"], encode, progress=False)
    with pytest.raises(FileExistsError, match="open it with Tokens.open"):
        data.write_tokens(tmp_path / "t", ["a"], encode, progress=False)
    (tmp_path / "t/tokens.bin").write_bytes(b"\0\0")
    with pytest.raises(ValueError, match="expected what write_tokens wrote"):
        data.Tokens.open(tmp_path / "t")

    def broken():
        yield "a"
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        data.write_tokens(tmp_path / "u", broken(), encode, progress=False)
    assert not (tmp_path / "u").exists()


@pytest.mark.parametrize("tokens", [[-1], [2**32]])
def test_tokens_that_do_not_fit_are_refused(tmp_path, tokens):
    with pytest.raises(ValueError, match="text 0: expected tokens from 0"):
        data.write_tokens(tmp_path / "t", ["a"], lambda _: tokens, progress=False)
    with pytest.raises(ValueError, match="at least one with a token"):
        data.write_tokens(tmp_path / "t", [""], lambda _: [], progress=False)


def test_documents_without_a_pair_are_refused():
    with pytest.raises(ValueError, match="expected one of two tokens"):
        data.PackedTokens(documents([1, 1]), 4, 1)
