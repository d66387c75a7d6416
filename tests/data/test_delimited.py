"""Tables of separated values: each row of the file is a row of the table, whatever its text holds."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodal_hf.data import tables
from xmodal_hf.data.delimited import inspect_delimited
from xmodal_hf.data.tables import load_table

CAPTIONS = [
    '"Hello there, a man says',
    "rain, falls",
    'a voice saying "stop"',
    '12" pizza',
    '"Stop" sign',
    "'a'",
    "wind",
]
# Text of one line: what csv and pandas take for the end of a line is none of a field.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), max_size=12)


def write_lines(path, header, rows, separator):
    lines = [separator.join(row) for row in [header, *rows]]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_quotation_marks_in_a_tsv_are_text(tmp_path):
    rows = [(f"{n}.wav", caption) for n, caption in enumerate(CAPTIONS)]
    table = load_table(write_lines(tmp_path / "a.tsv", ("file_name", "caption"), rows, "\t"))
    assert table["caption"][:] == CAPTIONS and table["file_name"][:] == [name for name, _ in rows]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS.filter(lambda text: text.strip() and '""' not in text), min_size=1, max_size=6))
def test_any_tsv_comes_back(tmp_path, captions):
    rows = [(f"{n}", f"x{caption}") for n, caption in enumerate(captions)]
    table = load_table(write_lines(tmp_path / "a.tsv", ("file_name", "caption"), rows, "\t"))
    assert table["caption"][:] == [caption for _, caption in rows]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t"), ("a.csv", "\t"), ("a.csv", ";")])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_what_the_csv_module_writes_comes_back(tmp_path, name, separator, captions):
    """Also a tsv: fields that hold quotation marks are quoted there, and those within doubled."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\n")
    writer.writerows([("id", "caption"), *((n, f"a {text} z") for n, text in enumerate(captions))])
    (tmp_path / name).write_text(buffer.getvalue(), encoding="utf-8")
    assert load_table(tmp_path / name)["caption"][:] == [f"a {text} z" for text in captions]


def test_a_tsv_with_a_quoted_header_is_quoted(tmp_path):
    (tmp_path / "a.tsv").write_text('"file"\t"caption"\n"a.png"\t"one\ntwo"\n"b.png"\t"three"\n')
    assert load_table(tmp_path / "a.tsv")["caption"][:] == ["one\ntwo", "three"]


@pytest.mark.parametrize("separator", ["\t", ";", "|", ","])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz"])
def test_separators_are_recognised(tmp_path, separator, ending):
    text = separator.join(("filepath", "title")) + "\n" + separator.join(("a.png", "a dog")) + "\n"
    content = text.encode()
    (tmp_path / f"a{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert load_table(tmp_path / f"a{ending}")[0] == {"filepath": "a.png", "title": "a dog"}


def test_a_csv_that_makes_no_sense_with_quoting_is_read_without(tmp_path, caplog):
    rows = [("a.png", '"Stop" sign'), ("b.png", 'he says "no'), ("c.png", '"unfinished'), ("d.png", "last")]
    table = load_table(write_lines(tmp_path / "a.csv", ("file", "caption"), rows, ","))
    assert table["caption"][:] == [caption for _, caption in rows]
    assert "a.csv is read without quoting" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,caption\na.png,one, two\n", r"line 2 has 3 fields, and the header has 2 \(file, caption\)"),
        ("file,caption\na.png\n", "line 2 has 1 fields"),
        ('file,caption\na.png,"one\nb.png,two, three\n', "a quotation mark is not closed"),
        ("file,file\na,b\n", "two columns with the name 'file'"),
        ("file,caption\n", r"has a header \(file, caption\) and no row below it"),
    ],
)
def test_rows_that_do_not_fit_the_header_are_errors(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "a.csv")


def test_other_encodings_say_how_to_convert(tmp_path):
    (tmp_path / "a.csv").write_bytes("file,caption\na.png,déjà vu\n".encode("latin1"))
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 .*iconv -f latin1"):
        load_table(tmp_path / "a.csv")
    for encoding in ("utf-16", "utf-16-le"):
        text = "file\tcaption\na.png\tdéjà vu\n"
        (tmp_path / "a.csv").write_bytes((text if encoding == "utf-16" else f"\ufeff{text}").encode(encoding))
        with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 .*iconv -f utf-16"):
            load_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes("file,caption\na.png,déjà vu\n".encode("utf-8-sig"))
    assert load_table(tmp_path / "a.csv").column_names == ["file", "caption"]


def test_a_note_for_excel_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffsep=;\nfile;caption\na.png;a dog\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv begins with 'sep=;', a note for Excel: remove that line"):
        load_table(tmp_path / "a.csv")


def test_columns_are_numbers_only_where_each_field_is_the_usual_spelling_of_one(tmp_path):
    (tmp_path / "a.csv").write_text("section,score\n1.1,4.5\n1.10,5\n")
    assert load_table(tmp_path / "a.csv")[:] == {"section": ["1.1", "1.10"], "score": [4.5, 5.0]}
    (tmp_path / "a.csv").write_text("file,text\n0.png,7\n1.png,8\n")
    assert load_table(tmp_path / "a.csv")["text"][:] == ["7", "8"]  # captions, whatever they say
    (tmp_path / "a.csv").write_text("id,fold,score,name\n007,1,1.5,1\n012,2,2,\n")
    table = load_table(tmp_path / "a.csv")
    assert table[0] == {"id": "007", "fold": 1, "score": 1.5, "name": "1"} and table[1]["name"] == ""


def test_the_rows_that_were_read_are_counted(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("file,caption\na,b\nc,d\n")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert len(load_table(tmp_path / "a.jsonl")) == 2
    build = tables._build
    monkeypatch.setattr(tables, "_build", lambda *args, **options: build(*args, **options).select([0]))
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(ValueError, match="has 2 rows, and 1 were read"):
            load_table(tmp_path / name)


def test_how_a_file_is_written(tmp_path):
    path = write_lines(tmp_path / "a.tsv", ("a", "b"), [("1", '"say ""no"""'), ("2", "x")], "\t")
    found = inspect_delimited(path, ".tsv")
    assert (found.separator, found.quoted, found.num_rows, found.num_quoted) == ("\t", False, 2, 1)


@pytest.mark.parametrize("lines", [True, False])
def test_a_json_file_may_hold_lines_or_one_document(tmp_path, lines):
    rows = [{"image": "a.png", "caption": "x"}, {"image": "b.png", "caption": "y"}]
    text = "".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps({"data": rows}, indent=1)
    (tmp_path / "a.json").write_text(text)
    assert load_table(tmp_path / "a.json")["caption"][:] == ["x", "y"]


def test_coco_annotations_of_another_task_say_which_to_pass(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}
    (tmp_path / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"COCO annotations without captions .*pass captions_\*\.json"):
        load_table(tmp_path / "instances_val2017.json")
