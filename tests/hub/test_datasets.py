"""Paired data by Hub id and by address, through the real clients: whole, streamed, and tars read in place."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Image
from huggingface_hub import HfApi
from PIL import Image as Pillow

REPO = "someone/pictures"
READ = """
import json, sys
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sources import load_pairs, stream_pairs

def read(pairs):
    items = PairDataset(pairs, seed=0)
    seen = [(items[i]["text"], items[i]["image"].getpixel((0, 0))[0]) for i in range(len(pairs))]
    return {"class": type(pairs).__name__, "seen": seen}

repo, url = sys.argv[1:]
print(json.dumps({
    "whole": read(load_pairs(repo)),
    "test split": read(load_pairs(repo, split="test")),
    "streamed": read(stream_pairs(repo)),
    "streamed test split": read(stream_pairs(repo, split="test")),
    "tars by hf://": read(stream_pairs(f"hf://datasets/{repo}/shards/*.tar")),
    "tars by http://": read(stream_pairs(f"{url}/datasets/{repo}/resolve/main/shards/{{0..1}}.tar")),
}))
"""


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (number, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def published(client: Any, tmp_path: Path) -> Any:
    """Twelve pictures on the Hub: two parquet files of a train split, one of a test split, and two tars."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    (folder / "shards").mkdir()
    parts = {"train-00000-of-00002": (0, 5), "train-00001-of-00002": (5, 10), "test-00000-of-00001": (10, 12)}
    for name, (first, end) in parts.items():
        rows = {
            "image": [encoded(i) for i in range(first, end)],
            "caption": [f"picture {i}" for i in range(first, end)],
        }
        table = Dataset.from_dict({**rows, "image": [{"bytes": content, "path": None} for content in rows["image"]]})
        table.cast_column("image", Image()).to_parquet(folder / "data" / f"{name}.parquet")
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"{shard}.tar", "w") as archive:
            for number in range(6 * shard, 6 * shard + 6):
                for suffix, content in (("png", encoded(number)), ("txt", f"picture {number}".encode())):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    configuration = "configs:\n- config_name: default\n  data_files:\n"
    configuration += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\n{configuration}---\n", encoding="utf-8")
    api = HfApi(endpoint=client.url, token=client.write_token)
    api.create_repo(REPO, repo_type="dataset")
    api.upload_folder(repo_id=REPO, folder_path=folder, repo_type="dataset")
    client.requests.clear()
    return client


def test_a_hub_id_and_addresses_are_read_whole_and_in_place(published: Any, run_script: Callable) -> None:
    """In a process with an empty cache."""
    done = run_script("-c", READ, REPO, published.url)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[f"picture {number}", number] for number in range(12)]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "whole": {"class": "Dataset", "seen": rows[:10]},
        "test split": {"class": "Dataset", "seen": rows[10:]},
        "streamed": {"class": "ParquetPairs", "seen": rows[:10]},
        "streamed test split": {"class": "ParquetPairs", "seen": rows[10:]},
        "tars by hf://": {"class": "Dataset", "seen": rows},
        "tars by http://": {"class": "Dataset", "seen": rows},
    }
