import gzip
import io
import json
import logging
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from xmodal_hf.data.builtin.openmoji import openmoji_captions
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.sentences import build_triplets, load_sentences, load_triplets, nli_to_triplets
from xmodal_hf.data.sources import load_pairs, stream_pairs

# premise, hypothesis, label: what is kept and dropped is counted by hand in the tests.
NLI = [
    ("A man sleeps.", "A man rests.", "entailment"),
    ("A man sleeps.", "A person sleeps.", "entailment"),
    ("A man sleeps.", "A man runs.", "contradiction"),
    ("A man sleeps.", "A man dreams.", "neutral"),
    ("A dog barks.", "An animal makes a noise.", "entailment"),
    ("A cat eats.", "A cat sleeps.", "contradiction"),
    ("A man sleeps.", "A man runs.", "contradiction"),
    ("A bird sings.", "", "entailment"),
    (None, "Somebody is there.", "entailment"),
    ("A bird sings.", "A bird is loud.", "-"),
]
TRIPLETS = [("A man sleeps.", "A man rests.", "A man runs."), ("A man sleeps.", "A person sleeps.", "A man runs.")]
MIXED = [*TRIPLETS, ("A dog barks.", "An animal makes a noise.", None)]
DROPPED = {
    "neutral pairs": 1,
    "premises without an entailment": 1,
    "repeated pairs": 1,
    "pairs with an empty text": 2,
    "unlabelled pairs": 1,
}


def rows_of(dataset):
    return [(row["anchor"], row["positive"], row["negative"]) for row in dataset]


def nli_table(names, labels):
    premises, hypotheses, _ = zip(*NLI, strict=True)
    return Dataset.from_dict(dict(zip(names, (premises, hypotheses, labels), strict=True)))


def test_nli_becomes_triplets_and_every_drop_is_counted():
    triplets, dropped = nli_to_triplets(*zip(*NLI, strict=True))
    assert rows_of(triplets) == MIXED
    assert dropped == DROPPED


def test_rows_without_a_contradiction_can_be_dropped(tmp_path, caplog):
    """As in SimCSE's data; the others, and what is drawn for them, stay the same."""
    path = tmp_path / "rows.csv"
    nli_table(("premise", "hypothesis", "label"), [row[2] for row in NLI]).to_csv(path)
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        assert rows_of(load_triplets(path)) == MIXED
        assert rows_of(load_triplets(path, require_negatives=True)) == TRIPLETS
    assert "3 triplets, 1 of them without a hard negative; dropped: " in caplog.text
    assert "2 triplets; dropped: " in caplog.text and "1 rows without a hard negative" in caplog.text
    Dataset.from_dict({"anchor": ["a"], "positive": ["b"]}).to_csv(path)
    with pytest.raises(ValueError, match=r"No triplet in .*dropped: 1 rows without a hard negative"):
        load_triplets(path, require_negatives=True)


@pytest.mark.parametrize(
    "names",
    [
        ("premise", "hypothesis", "label"),
        ("sentence1", "sentence2", "gold_label"),
        ("sentence_A", "sentence_B", "label"),
        ("sentence_A", "sentence_B", "entailment_judgment"),
        ("sentence_A", "sentence_B", "entailment_label"),
        ("context", "hypothesis", "label"),
        ("sentence1", "sentence2", "label"),
    ],
)
@pytest.mark.parametrize("kind", ["names", "upper", "integers", "text integers", "letters"])
def test_nli_layouts_and_labels(names, kind, caplog):
    integers = {"entailment": 0, "neutral": 1, "contradiction": 2, "-": -1}
    label = {
        "names": str,
        "upper": str.upper,
        "integers": lambda name: integers[name],
        "text integers": lambda name: str(integers[name]),
        "letters": lambda name: name[0],
    }[kind]
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        triplets, dropped = build_triplets(nli_table(names, [label(row[2]) for row in NLI]))
    assert rows_of(triplets) == MIXED
    meaning = {"integers": "0 is entailment, 1 is neutral, 2 is contradiction", "letters": "e is entailment"}
    shown = meaning.get(kind.removeprefix("text "))
    assert (f"column {names[2]!r} is read as labels of NLI: {shown}" in caplog.text) == (shown is not None)
    assert dropped == DROPPED


def test_class_labels_are_read_by_their_names():
    """Another order of the names than the usual one: reading the integers would swap positives and negatives."""
    names = ["contradiction", "neutral", "entailment"]
    labels = [names.index(row[2]) if row[2] in names else -1 for row in NLI]
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": ClassLabel(names=names)})
    table = nli_table(("premise", "hypothesis", "label"), labels).cast(features)
    triplets, dropped = build_triplets(table)
    assert rows_of(triplets) == MIXED
    assert dropped == DROPPED


# Two texts and labels that are not those of NLI: names of the columns, labels, names of a ClassLabel, of positives.
LABELLED = {
    "duplicates": (("sentence1", "sentence2", "label"), [1, 0, 1, 0], None, "1"),
    "texts of integers": (("sentence1", "sentence2", "label"), ["1", "0", "1", "0"], None, "1"),
    "floats": (("sentence1", "sentence2", "label"), [1.0, 0.0, 1.0, None], None, "1"),
    "MRPC": (("sentence1", "sentence2", "label"), [1, 0, 1, 0], ["not_equivalent", "equivalent"], "equivalent"),
    "MRPC by number": (("sentence1", "sentence2", "label"), [1, 0, 1, 0], ["not_equivalent", "equivalent"], "1"),
    "PAWS": (("sentence1", "sentence2", "label"), [1, 0, 1, 0], ["0", "1"], "1"),
    "words": (("sentence1", "sentence2", "label"), ["yes", "no", "Yes", "no"], None, "yes"),
    "QQP": (("question1", "question2", "label"), [1, 0, 1, 0], ["not_duplicate", "duplicate"], "duplicate"),
    "Quora": (("question1", "question2", "is_duplicate"), [1, 0, 1, 0], None, "1"),
    "similarity": (("sentence1", "sentence2", "label"), [5, 0, 5, 3], None, "5"),
    "scores": (("sentence1", "sentence2", "score"), [5.0, 0.5, 5.0, 3.2], None, "5"),
    "SICK's names": (("sentence_A", "sentence_B", "label"), [1, 0, 1, 0], None, "1"),
    "other order": (("premise", "hypothesis", "label"), [2, 0, 2, 1], ["a", "b", "c"], "c"),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_not_those_of_nli_are_never_guessed(name, tmp_path, caplog):
    columns, labels, names, positive = LABELLED[name]
    table = Dataset.from_dict(dict(zip(columns, (["p", "p", "q", "r"], ["x", "y", "z", "w"], labels), strict=True)))
    if names is not None:
        table = table.cast_column(columns[2], ClassLabel(names=names))
    with pytest.raises(ValueError, match="--positive_label"):
        build_triplets(table)
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        pairs, dropped = build_triplets(table, positive_label=positive)
    assert pairs.column_names == ["anchor", "positive"]
    assert list(zip(pairs["anchor"], pairs["positive"], strict=True)) == [("p", "x"), ("q", "z")]
    assert dropped == {"pairs with another label": 2} or name == "floats"
    assert f"column {columns[2]!r}: rows with {positive!r} are positives; rows with other" in caplog.text
    with pytest.raises(ValueError, match=r"--positive_label 17: the column .* has the values '"):
        build_triplets(table, positive_label="17")


def test_labels_name_hard_negatives_too(tmp_path):
    rows = {"sentence1": ["p", "p", "q", "r"], "sentence2": ["x", "y", "z", "w"], "label": [1, 0, 1, 0]}
    Dataset.from_dict(rows).to_json(tmp_path / "rows.jsonl")
    found = load_triplets(tmp_path / "rows.jsonl", positive_label="1", negative_label="0")
    assert rows_of(found) == [("p", "x", "y"), ("q", "z", None)]
    with pytest.raises(ValueError, match="--negative_label 3: the column 'label' has the values '0', '1'"):
        load_triplets(tmp_path / "rows.jsonl", positive_label="1", negative_label="3")
    with pytest.raises(ValueError, match="--positive_label is for two texts and a label in each row"):
        build_triplets(Dataset.from_dict({"anchor": ["a"], "positive": ["b"]}), positive_label="1")
    # Names that belong to NLI alone, without a contradiction, keep their order.
    entailed = Dataset.from_dict({"premise": ["p", "q"], "hypothesis": ["x", "y"], "label": [0, 1]})
    assert build_triplets(entailed)[0]["positive"][:] == ["x"]
    binary = Dataset.from_dict({"sentence1": ["p", "q"], "sentence2": ["x", "y"], "label": [0, 1]})
    with pytest.raises(ValueError, match="the column 'label' has the values '0', '1', which are no labels of NLI"):
        build_triplets(binary)


def test_one_of_several_contradictions_is_drawn_by_seed():
    pairs = [("p", f"yes {i}", "entailment") for i in range(40)] + [("p", f"no {i}", "contradiction") for i in range(9)]
    draws = [rows_of(nli_to_triplets(*zip(*pairs, strict=True), seed=seed)[0]) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len({negative for _, _, negative in draws[0]}) > 5
    assert [positive for _, positive, _ in draws[0]] == [f"yes {i}" for i in range(40)]


@pytest.mark.parametrize(
    "names",
    [("anchor", "positive", "negative"), ("anchor", "entailment", "contradiction"), ("sent0", "sent1", "hard_neg")],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".jsonl.gz"])
def test_triplet_layouts(tmp_path, caplog, names, suffix):
    rows = [*TRIPLETS, ("only an anchor", "", "x")]
    table = Dataset.from_dict(dict(zip(names, zip(*rows, strict=True), strict=True)))
    path = tmp_path / f"triplets{suffix}"
    if suffix == ".csv":
        table.to_csv(path)
    else:
        opener = gzip.open if suffix.endswith("gz") else open
        with opener(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in table)
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        triplets = load_triplets(path)
    assert rows_of(triplets) == TRIPLETS
    assert "2 triplets; dropped: 1 triplets with an empty text" in caplog.text


def test_no_triplets_is_an_error_that_says_why(tmp_path):
    path = tmp_path / "rows.csv"
    nli_table(("premise", "hypothesis", "label"), ["neutral"] * len(NLI)).to_csv(path)
    with pytest.raises(ValueError, match="dropped: 8 neutral pairs, 2 pairs with an empty text"):
        load_triplets(path)
    Dataset.from_dict({"a": ["x"], "b": ["y"]}).to_csv(path)
    with pytest.raises(
        ValueError, match=r"No triplets in the columns a, b\. Known layouts: anchor, positive, negative;"
    ):
        load_triplets(path)


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_text_files(tmp_path, name, caplog):
    opener = gzip.open if name.endswith("gz") else open
    with opener(tmp_path / name, "wt", encoding="utf-8") as file:
        file.write("One.\n\n  Two, déjà vu. \n   \nnull\nThree")
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        sentences = load_sentences(tmp_path / name)
    assert sentences.column_names == ["anchor"]
    assert sentences["anchor"][:] == ["One.", "Two, déjà vu.", "null", "Three"]
    assert "Dropped 2 of 6 sentences that are empty or no text" in caplog.text


def test_captions_of_a_paired_dataset_are_flattened(tmp_path):
    Dataset.from_dict({"image": ["a", "b"], "captions": [["one", "two"], ["three"]]}).to_json(tmp_path / "rows.jsonl")
    assert load_sentences(tmp_path / "rows.jsonl")["anchor"][:] == ["one", "two", "three"]


def test_built_in_captions():
    assert load_sentences("openmoji")["anchor"][:] == openmoji_captions("train")
    assert len(load_sentences("soundfont", max_sentences=50)) == 50


def test_sampling_is_seeded_and_keeps_the_order(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {number:03}" for number in range(500)))
    first, again, other = (
        load_sentences(tmp_path / "lines.txt", max_sentences=100, seed=seed)["anchor"][:] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert first == sorted(first) and len(set(first)) == 100
    assert sum(line < "line 250" for line in first) > 30  # from everywhere, not the first lines


def test_what_cannot_be_read_says_why(tmp_path):
    Dataset.from_dict({"words": ["x"], "number": [1]}).to_json(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"Pass --sentence_column\. Columns found: words, number"):
        load_sentences(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match=r"column 'number' .* has int values, not text"):
        load_sentences(tmp_path / "rows.jsonl", column="number")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no sentence in"):
        load_sentences(tmp_path / "empty.txt")


def test_real_nli(real_data):
    """The triplets that were made from the same pairs by others have the same premises."""
    made = {row["anchor"] for row in load_triplets(real_data / "nli" / "snli-dev.jsonl.gz", require_negatives=True)}
    with gzip.open(real_data / "nli" / "triplets.jsonl.gz", "rt") as file:
        theirs = {row["anchor"] for row in map(json.loads, file) if row["source"] == "snli-dev"}
    assert len(made & theirs) > 0.99 * len(made | theirs) > 2900


def test_captions_in_tars_are_sentences(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        members = {"1.txt": b"rain falls", "2.json": b'{"captions": ["snow", "ice"]}', "3.txt": b" "}
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert load_sentences(tmp_path / "a.tar")["anchor"][:] == ["rain falls", "snow", "ice"]


def test_what_is_no_text_among_sentences_is_dropped(tmp_path):
    lines = [{"captions": ["rain", None]}, {"captions": None}, {"captions": ["  ", "snow"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load_sentences(tmp_path / "a.jsonl")["anchor"][:] == ["rain", "snow"]


@pytest.mark.parametrize("is_list_first", [True, False])
def test_rows_of_texts_and_of_lists_are_mixed(tmp_path, is_list_first):
    lines = [{"text": ["a dog", "a hound"]}, {"text": "a cat"}, {"text": 7}]
    lines = lines if is_list_first else [*lines[1:], lines[0]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert sorted(load_sentences(tmp_path / "a.jsonl")["anchor"]) == ["a cat", "a dog", "a hound"]


def test_a_column_without_any_text_is_passed_over(tmp_path):
    """As `load_pairs` does."""
    (tmp_path / "a.jsonl").write_text('{"text": "", "caption": "rain"}\n{"text": "", "caption": "snow"}\n')
    assert load_sentences(tmp_path / "a.jsonl")["anchor"][:] == ["rain", "snow"]


def test_a_mark_of_byte_order_is_no_part_of_a_sentence(tmp_path):
    (tmp_path / "lines.txt").write_text("rain falls\r\nsnow\n", encoding="utf-8-sig")
    assert load_sentences(tmp_path / "lines.txt")["anchor"][:] == ["rain falls", "snow"]
    with gzip.open(tmp_path / "packed.txt.gz", "wb") as file:
        file.write((tmp_path / "lines.txt").read_bytes())
    assert load_sentences(tmp_path / "packed.txt.gz")["anchor"][:] == ["rain falls", "snow"]


@pytest.mark.parametrize("name, line", [("lines.txt", "caf\xe9"), ("lines.jsonl", '{"text": "caf\xe9"}')])
def test_other_encodings_say_how_to_convert(tmp_path, name, line):
    (tmp_path / name).write_bytes(f"{line}\n".encode("latin1"))
    with pytest.raises(ValueError, match=rf"{name}.*: convert it .*`iconv -f latin1 -t utf-8 {name} > utf8\."):
        load_sentences(tmp_path / name)


def test_bytes_that_are_no_text_are_found_before_a_run(tmp_path):
    """pyarrow would raise when the row is asked for, perhaps in a second epoch."""
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe"))
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "rows.parquet", tmp_path / "folder" / "train.parquet"):
        pq.write_table(pa.table({"image": ["0.png", "1.png"], "text": texts}), path)
    streamed = stream_pairs(tmp_path / "rows.parquet")
    assert streamed[0]["text"] == "a"
    with pytest.raises(BadItemError, match=r"damaged parquet: .*rows\.parquet: 'utf-8' codec can't decode"):
        streamed[1]
    for source in (tmp_path / "rows.parquet", tmp_path / "folder"):
        with pytest.raises(ValueError, match=rf"{source.name}: the column 'text' has a text that is not UTF-8"):
            load_pairs(source)


@pytest.mark.parametrize(
    "names",
    [("negative_1", "negative_2"), ("Negatives",), ("hard_negatives",), ("neg1", "neg2"), ("negative", "negative_2")],
)
def test_hard_negatives_of_several_columns_or_in_the_plural_are_used(tmp_path, names, caplog):
    """sentence-transformers numbers those that it has mined."""
    wrong = [["x", "y"], ["z", None]]
    columns = {name: [row[number] for row in wrong] for number, name in enumerate(names)}
    columns = columns if len(names) > 1 else {names[0]: wrong}
    Dataset.from_dict({"anchor": ["a", "b"], "positive": ["c", "d"], **columns}).to_json(tmp_path / "rows.jsonl")
    with caplog.at_level(logging.INFO, logger="xmodal_hf"):
        triplets = load_triplets(tmp_path / "rows.jsonl")
    assert triplets["negative"][0] in ("x", "y") and triplets["negative"][1] == "z"
    assert f"hard negatives are in the columns {', '.join(names)}" in caplog.text
    drawn = {load_triplets(tmp_path / "rows.jsonl", seed=seed)["negative"][0] for seed in range(12)}
    assert drawn == {"x", "y"}


def test_numbers_among_premises_are_dropped_as_empty():
    triplets, dropped = nli_to_triplets(["a", 5], ["b", "c"], ["entailment", "entailment"])
    assert len(triplets) == 1 and dropped == {"pairs with an empty text": 1}
