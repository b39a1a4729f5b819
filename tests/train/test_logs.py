"""Logs: each step once, whatever was torn or done again."""

import json
import sys

from hypothesis import given
from hypothesis import strategies as st
import pytest

from jaxdl.train import History, JsonLines, TensorBoard


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_on_disk_when_written(tmp_path):
    log = JsonLines(tmp_path / "deep" / "log.jsonl")
    log.write({"step": 1, "loss": 0.5})
    assert lines(log.path) == [{"step": 1, "loss": 0.5}]
    log.close()


@given(st.integers(0, 6), st.integers(0, 25))
def test_resuming_drops_later_steps_and_a_torn_line(tmp_path_factory, step, torn):
    log = JsonLines(tmp_path_factory.mktemp("log") / "log.jsonl")
    for done in range(1, 6):
        log.write({"step": done, "loss": 1 / done})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 6, "loss": 0.25}'[:torn])
    kept = log.resume(step)
    expected = list(range(1, min(step, 5) + 1))
    assert [record["step"] for record in kept] == expected
    log.write({"step": step + 1, "loss": 0.0})
    log.close()
    assert [record["step"] for record in lines(log.path)] == [*expected, step + 1]


def test_a_history_gives_its_series_by_name():
    history = History(
        [
            {"step": 1, "loss": 3.0},
            {"step": 2, "eval/loss": 4.0},
            {"step": 3, "loss": 2},
        ]
    )
    assert history.names() == ["loss", "eval/loss"]
    assert history.series("loss") == ([1, 3], [3.0, 2])
    assert history.series("nothing") == ([], [])


def test_tensorboard_reads_what_was_written_and_purges_on_resume(tmp_path):
    pytest.importorskip("tensorboardX")
    log = TensorBoard(tmp_path)
    log.resume(0)
    log.write({"step": 1, "loss": 0.5, "eval/loss": 0.25})
    log.resume(1)
    log.write({"step": 2, "loss": 0.125})
    log.close()
    events = [event for path in sorted(tmp_path.iterdir()) for event in read(path)]
    scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert scalars == [(1, "loss", 0.5), (1, "eval/loss", 0.25), (2, "loss", 0.125)]
    # SessionLog.START is what makes TensorBoard forget the steps from there on.
    assert [e.step for e in events if e.HasField("session_log")] == [1, 2]


def read(path):
    """The events of a file: length, checksum, message, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event()
        event.ParseFromString(data[12 : 12 + size])
        yield event
        data = data[16 + size :]


def test_without_tensorboardx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'pip install "jaxdl\[examples\]"'):
        TensorBoard(tmp_path).write({"step": 1, "loss": 0.0})
