import json
import pickle

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

# Whatever may stand in a line; \x1c and its like end lines for str.splitlines only.
line = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]))


@given(
    st.lists(st.lists(line, max_size=5), min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_lines_are_those_of_the_files_but_blank_ones(
    tmp_path_factory, files, end, last
):
    folder = tmp_path_factory.mktemp("lines")
    paths = [folder / f"{index}.txt" for index in range(len(files))]
    for path, lines in zip(paths, files, strict=True):
        text = end.join(lines) + (end if last and lines else "")
        path.write_bytes(text.encode())
    lines = data.Lines(paths)
    expected = [each for lines in files for each in lines if each]
    assert [lines[index] for index in range(len(lines))] == expected


def test_json_lines_name_the_line_that_is_none(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n\n{"x": \n')
    lines = data.JSONLines(path)
    assert (len(lines), lines[0]) == (2, {"x": 1})
    with pytest.raises(ValueError, match=r"a\.jsonl:3: not JSON"):
        lines[1]
    with pytest.raises(IndexError, match="record 2 of 2"):
        lines[2]
    path.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1: expected UTF-8"):
        data.JSONLines(path)[0]


def test_records_survive_a_trip_to_another_process(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert pickle.loads(pickle.dumps(data.Lines(tmp_path / "*.txt")))[1] == "two"


def test_patterns_name_files_in_order_and_must_name_one(tmp_path):
    for name in ("b/2.txt", "a/1.txt", "a/x.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    texts = data.Texts(tmp_path / "**" / "*.txt")
    assert [texts[i]["text"] for i in range(2)] == ["a/1.txt", "b/2.txt"]
    for missing in (tmp_path / "*.csv", tmp_path / "c.txt"):
        with pytest.raises(FileNotFoundError, match="expected a file or a pattern"):
            data.Lines(missing)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_gives_its_rows_across_groups_and_files(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"x": i, "text": f"row {i}", "more": [i]} for i in range(7)]
    for name, part in (("a", rows[:5]), ("b", rows[5:])):
        table = pyarrow.Table.from_pylist(part)
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            parquet.write_table(table, path, row_group_size=2)
        else:
            with pyarrow.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
    table = data.Tables(tmp_path / f"*.{kind}")
    assert [table[i] for i in range(len(table))] == rows
    assert data.Tables(tmp_path / f"*.{kind}", ["x"])[6] == {"x": 6}
    with pytest.raises(ValueError, match=r"no columns \['y'\]; it has"):
        data.Tables(tmp_path / f"*.{kind}", ["y"])
    (tmp_path / f"c.{kind}").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match="not a Parquet or Arrow file"):
        data.Tables(tmp_path / f"c.{kind}")


def test_an_image_folder_has_a_class_for_each_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 9, 3), np.uint8)
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / name).parent.mkdir()
        image.fromarray(pixels).save(tmp_path / name)
    folder = data.ImageFolder(tmp_path)
    assert (folder.classes, len(folder)) == (("cat", "dog"), 2)
    np.testing.assert_array_equal(folder[1]["image"], pixels)
    assert folder[1]["label"] == 1
    assert data.ImageFolder(tmp_path, size=4)[0]["image"].shape == (4, 4, 3)
    (tmp_path / "cat/1.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match=r"cat/1\.png: not an image"):
        folder[0]


def test_json_that_is_written_comes_back(tmp_path):
    rows = [{"text": "a\u2028b"}, [1, None], "x"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
    lines = data.JSONLines(path)
    assert [lines[i] for i in range(3)] == rows
