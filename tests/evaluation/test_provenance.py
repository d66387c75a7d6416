"""Tables by name, and checksums that see every change."""

import pytest

from xmodal_hf.evaluation.provenance import checksum, describe_source, local_table


def test_local_table(tmp_path):
    (tmp_path / "sts12.csv").write_text("a,b\n1,x\n")
    (tmp_path / "sts12-notes.txt").write_text("not this one")
    assert local_table(tmp_path, "sts12")["b"][:] == ["x"]
    with pytest.raises(FileNotFoundError, match=r"no table sts13\.\*, only sts12-notes.txt, sts12.csv"):
        local_table(tmp_path, "sts13")


def test_checksum_sees_names_and_contents(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("one")
    first = checksum(tmp_path)
    assert checksum(tmp_path) == first and len(first) == 64
    (tmp_path / "sub" / "b").rename(tmp_path / "sub" / "c")
    renamed = checksum(tmp_path)
    (tmp_path / "sub" / "c").write_text("two")
    assert len({first, renamed, checksum(tmp_path)}) == 3
    assert checksum(tmp_path / "sub" / "c") != checksum(tmp_path)


class Cached:
    """What `load_dataset` gives for a Hub dataset, as far as its cache file goes."""

    cache_files = [{"filename": f"/cache/mteb___sts12-sts/default/0.0.0/{'ab' * 20}/sts12-sts-test.arrow"}]


def test_describe_source(tmp_path):
    assert describe_source(tmp_path) == {"dataset": tmp_path.name, "sha256": checksum(tmp_path)}
    assert describe_source("mteb/sts12-sts", Cached()) == {"dataset": "mteb/sts12-sts", "revision": "ab" * 20}
    assert describe_source("openmoji") == {"dataset": "openmoji"}


def test_checksum_follows_links_as_loading_does(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    (data / "dog").mkdir(parents=True)
    elsewhere.mkdir()
    (data / "dog" / "0.txt").write_text("one")
    alone = checksum(data)
    (elsewhere / "1.txt").write_text("two")
    (data / "cat").symlink_to(elsewhere, target_is_directory=True)
    (data / "dog" / "around").symlink_to(data, target_is_directory=True)  # would be walked for ever
    linked = checksum(data)
    (elsewhere / "1.txt").write_text("three")
    assert len({alone, linked, checksum(data)}) == 3
