"""The layouts of files that `--dataset` reads: each with what makes it, a builder and the options that read it.

The table "Data layouts" in docs/data_layouts.md is made of this list, and test_layouts.py runs every line of it.
`python tests/data/layout_catalogue.py` writes the table anew.

Item n is a picture of one colour or a tone that says n, and its captions name n ("item 3"), so that a caption beside
the wrong file shows. Pictures and sounds are 0, ..., NUM_ITEMS - 1 in every layout.
"""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PillowImage

NUM_ITEMS = 4
RATE_HZ = 8000
DOCUMENT = Path(__file__).parents[2] / "docs" / "data_layouts.md"
BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"
_SCRIPT = "train_contrastive.py"


def picture(number: int, kind: str = "PNG") -> bytes:
    """An encoded picture whose red is 40 times its number."""
    buffer = io.BytesIO()
    PillowImage.new("RGB", (24, 20), (40 * number, 90, 30)).save(buffer, kind)
    return buffer.getvalue()


def number_of_picture(image: PillowImage.Image) -> int:
    """The number of a picture made by `picture`."""
    return round(image.getpixel((5, 5))[0] / 40)


def sound(number: int, kind: str = "WAV") -> bytes:
    """An encoded tone that lasts a tenth of a second, and one more for each number."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples(number), RATE_HZ, format=kind)
    return buffer.getvalue()


def samples(number: int) -> np.ndarray:
    """The samples (n,) of `sound`."""
    return (0.3 * np.sin(np.arange(RATE_HZ * (number + 1) // 10) / 3)).astype(np.float32)


def number_of_sound(waveform: np.ndarray) -> int:
    """The number of a tone made by `sound`."""
    return round(10 * len(waveform) / RATE_HZ) - 1


@dataclass(frozen=True)
class Layout:
    """One line of the table.

    Attributes:
        name: who writes it, and what it looks like.
        options: of the command, where {} is the folder that `build` has filled.
        build: writes the files.
        captions: captions of item n, the one or the list.
        modality: image or audio.
        peer: package without which `build` cannot run.
    """

    name: str
    options: str
    build: Callable[[Path], None]
    captions: Callable[[int], str | list[str]] = lambda number: f"item {number}"
    modality: str = "image"
    peer: str | None = None

    @property
    def command(self) -> str:
        modality = "" if self.modality == "image" else f"--modality {self.modality} "
        return f"{_SCRIPT} {modality}--dataset {self.options.replace('{}', 'FOLDER')}"


LAYOUTS: list[Layout] = []


def layout(name: str, options: str, **fields: object) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Enter a builder into the list."""

    def enter(build: Callable[[Path], None]) -> Callable[[Path], None]:
        LAYOUTS.append(Layout(name, options, build, **fields))  # type: ignore[arg-type]
        return build

    return enter


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbers() -> range:
    return range(NUM_ITEMS)


def pictures(folder: Path, name: Callable[[int], str] = lambda number: f"{number}.png") -> None:
    for number in numbers():
        write(folder / name(number), picture(number))


def sounds(folder: Path, name: Callable[[int], str] = lambda number: f"{number}.wav") -> None:
    for number in numbers():
        write(folder / name(number), sound(number))


def one_or_more(number: int) -> list[str]:
    return [f"item {number}", f"again item {number}"]


@layout("A table beside the files: csv, tsv, jsonl, json, parquet (paths or bytes)", "{}/pairs.csv")
def table(folder: Path) -> None:
    pictures(folder / "files")
    write(folder / "pairs.csv", "image,caption\n" + "".join(f"files/{n}.png,item {n}\n" for n in numbers()))


@layout("A table beside zip archives that hold the files", "{}/pairs.jsonl", captions=one_or_more)
def table_with_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in numbers():
            archive.writestr(f"{number}.png", picture(number))
    write(folder / "pairs.jsonl", jsonl([{"image": f"{n}.png", "captions": one_or_more(n)} for n in numbers()]))


@layout("open_clip: csv separated by tabs, `filepath` and `title`", "{}/train.csv")
def open_clip(folder: Path) -> None:
    pictures(folder)
    rows = "".join(f"{n}.png\titem {n}\n" for n in numbers())
    write(folder / "train.csv", "filepath\ttitle\n" + rows)


@layout("Texts beside the files: `a.jpg` and `a.txt`, `a.caption` or `a.json`", "{}")
def texts_beside(folder: Path) -> None:
    pictures(folder, lambda number: f"part{number % 2}/{number}.png")
    for number in numbers():
        texts = {".txt": f"item {number}\n", ".caption": f"item {number}"}
        texts[".json"] = json.dumps({"text": None, "caption": f"item {number}"})
        ending = list(texts)[number % 3]
        write(folder / f"part{number % 2}/{number}{ending}", texts[ending])


@contextmanager
def _img2dataset_writer(name: str, folder: Path) -> Iterator[Callable[[int], None]]:
    """The writer of img2dataset, loaded without the package's downloader and what that needs."""
    package = importlib.util.find_spec("img2dataset")
    assert package is not None and package.submodule_search_locations
    spec = importlib.util.spec_from_file_location("writer", Path(package.submodule_search_locations[0]) / "writer.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = ("key", "status", "caption", "url")
    schema = pa.schema([pa.field(field, pa.string()) for field in fields])
    if name == "ParquetSampleWriter":
        schema = schema.append(pa.field("txt", pa.string()))
    writer = getattr(module, name)(0, str(folder), True, 5, schema, "jpg")

    def add(number: int, failed: bool = False) -> None:
        key, caption = f"{number:09}", f"item {number}"
        status = "failed_to_download" if failed else "success"
        meta = {"key": key, "status": status, "caption": caption, "url": f"http://localhost/{number}.jpg"}
        writer.write(None if failed else picture(number, "JPEG"), key, caption, meta)

    yield add
    add(NUM_ITEMS, failed=True)  # type: ignore[call-arg]
    writer.close()
    write(folder / "00000_stats.json", json.dumps({"count": NUM_ITEMS + 1, "successes": NUM_ITEMS}))


def _img2dataset(name: str, folder: Path) -> None:
    with _img2dataset_writer(name, folder) as add:
        for number in numbers():
            add(number)


@layout("img2dataset, `--output_format files`", "{}", peer="img2dataset")
def img2dataset_files(folder: Path) -> None:
    _img2dataset("FilesSampleWriter", folder)


@layout("img2dataset, `--output_format webdataset`", "{}", peer="img2dataset")
def img2dataset_webdataset(folder: Path) -> None:
    _img2dataset("WebDatasetSampleWriter", folder)


@layout("img2dataset, `--output_format parquet`", "{}", peer="img2dataset")
def img2dataset_parquet(folder: Path) -> None:
    _img2dataset("ParquetSampleWriter", folder)


@layout("webdataset's `ShardWriter`", '"{}/*.tar"', peer="webdataset", captions=lambda number: [f"item {number}"])
def shard_writer(folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{folder}/part-%03d.tar", maxcount=2, verbose=0) as writer:
        for number in numbers():
            content = {"png": picture(number), "json": {"caption": f"item {number}", "size": 24}}
            writer.write({"__key__": f"{number % 2:04}", **content})  # keys that begin again in each shard


@layout(
    "webdataset with names before the endings: `000.image.jpeg`, `000.caption.txt`",
    '"{}/part-{000..001}.tar"',
    peer="webdataset",
    captions=lambda number: [f"item {number}"],
)
def compound_endings(folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{folder}/part-%03d.tar", maxcount=2, verbose=0) as writer:
        for number in numbers():
            content = {"image.jpeg": picture(number, "JPEG"), "caption.txt": f"item {number}", "mask.png": picture(0)}
            writer.write({"__key__": f"{number:04}", **content})


@layout("A tar whose captions do not follow their files", "{}/all.tar", captions=lambda number: [f"item {number}"])
def tar_in_any_order(folder: Path) -> None:
    members = {f"{n}.txt": f"item {n}".encode() for n in numbers()} | {f"{n}.png": picture(n) for n in numbers()}
    with tarfile.open(folder / "all.tar", "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@layout("datasets' imagefolder and audiofolder with metadata.jsonl, .csv or .parquet", "{} --split validation")
def image_folder(folder: Path) -> None:
    pictures(folder / "validation")
    rows = [{"file_name": f"{n}.png", "text": f"item {n}"} for n in numbers()]
    write(folder / "validation" / "metadata.jsonl", jsonl(rows))


@layout("imagefolder with lists, `file_names`: a row for each file", "{}")
def image_folder_lists(folder: Path) -> None:
    pictures(folder)
    pairs = [(n, n + 1) for n in range(0, NUM_ITEMS, 2)]
    rows = [{"file_names": [f"{n}.png" for n in pair], "text": " ".join(f"item {n}" for n in pair)} for pair in pairs]
    write(folder / "metadata.jsonl", jsonl(rows))


@layout("datasets' `save_to_disk`", "{} --split test")
def saved(folder: Path) -> None:
    rows = [{"image": PillowImage.open(io.BytesIO(picture(n))), "text": f"item {n}"} for n in numbers()]
    DatasetDict({"test": Dataset.from_list(rows).cast_column("image", Image())}).save_to_disk(folder)


@layout("A `ClassLabel` column: the names of the classes", "{}/train.parquet --text_column label")
def class_label(folder: Path) -> None:
    features = Features({"image": Image(), "label": ClassLabel(names=[f"item {n}" for n in numbers()])})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in numbers()], "label": list(numbers())}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")


@layout("COCO captions", "{}/annotations/captions_val2017.json", captions=one_or_more)
def coco(folder: Path) -> None:
    pictures(folder / "val2017", lambda number: f"{number:012}.png")
    images = [{"id": n, "file_name": f"{n:012}.png"} for n in numbers()]
    captions = [{"image_id": n, "id": 10 * n + k, "caption": one_or_more(n)[k]} for k in range(2) for n in numbers()]
    content = {"info": {}, "images": images, "annotations": captions}
    write(folder / "annotations" / "captions_val2017.json", json.dumps(content))


@layout("Karpathy's splits of COCO and Flickr", "{}/dataset_coco.json --split val", captions=one_or_more)
def karpathy(folder: Path) -> None:
    pictures(folder / "val2014")
    place = {"filepath": "val2014", "split": "val"}
    images = [
        {**place, "filename": f"{n}.png", "sentences": [{"raw": text} for text in one_or_more(n)]} for n in numbers()
    ]
    others = [{"filepath": "train2014", "filename": "x.png", "split": "restval", "sentences": [{"raw": "x"}]}]
    write(folder / "dataset_coco.json", json.dumps({"images": images + others, "dataset": "coco"}))


@layout("Kaggle's Flickr8k: `Images/` and a captions.txt with a header", "{}")
def kaggle_flickr(folder: Path) -> None:
    pictures(folder / "Images")
    write(folder / "captions.txt", "image,caption\n" + "".join(f"{n}.png,item {n}\n" for n in numbers()))


@layout("A folder of files whose table lies above it", "{}/pictures")
def table_above(folder: Path) -> None:
    pictures(folder / "pictures", lambda number: f"part{number % 2}/{number}.png")
    rows = "".join(f"part{n % 2}/{n}.png,item {n}\n" for n in numbers())
    write(folder / "captions.csv", "file_name,caption\n" + rows)


@layout("One folder per class, or a zip archive of such folders: the names of the folders", "{}")
def class_folders(folder: Path) -> None:
    pictures(folder, lambda number: f"item_{number}/photo.png")


@layout("ESC-50: `meta/esc50.csv` and `audio/`", "{} --text_column category", modality="audio")
def esc50(folder: Path) -> None:
    sounds(folder / "audio", lambda number: f"1-{number}-A-0.wav")
    rows = "".join(f"1-{n}-A-0.wav,1,{n},item {n},False,{n},A\n" for n in numbers())
    write(folder / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + rows)


@layout(
    "UrbanSound8K: `slice_file_name` in `audio/fold1`, ...",
    "{}/metadata/UrbanSound8K.csv --text_column class",
    modality="audio",
)
def urban_sound(folder: Path) -> None:
    sounds(folder / "audio", lambda number: f"fold{number + 1}/same.wav")  # told apart by their folds
    rows = "".join(f"same.wav,{n},0.0,{n + 1},item {n}\n" for n in numbers())
    write(folder / "metadata" / "UrbanSound8K.csv", "slice_file_name,fsID,start,fold,class\n" + rows)


@layout(
    "Clotho: `caption_1`, ..., `caption_5`",
    "{}/clotho_captions_development.csv --text_column caption_1 caption_2",
    modality="audio",
    captions=one_or_more,
)
def clotho(folder: Path) -> None:
    sounds(folder / "development", lambda number: f"clip {number}.wav")
    rows = "".join(f"clip {n}.wav,{','.join(one_or_more(n))}\n" for n in numbers())
    write(folder / "clotho_captions_development.csv", "file_name,caption_1,caption_2\n" + rows)


@layout("AudioCaps: files named by `youtube_id`", "{}/train.csv", modality="audio")
def audio_caps(folder: Path) -> None:
    names = ("{}.wav", "Y{}.wav", "{}_30.flac", "{}.wav")
    for number in numbers():
        name = names[number].format(f"-id{number}")
        write(folder / "audio" / name, sound(number, "FLAC" if name.endswith("flac") else "WAV"))
    rows = "".join(f"{90 + n},-id{n},30,item {n}\n" for n in numbers())
    write(folder / "train.csv", "audiocap_id,youtube_id,start_time,caption\n" + rows)


@layout('WavCaps: `{"data": [...]}`, files named by `id`', "{}/json_files/bbc_final.json", modality="audio")
def wav_caps(folder: Path) -> None:
    for number in numbers():
        write(folder / "flac" / f"NHU0{number}.flac", sound(number, "FLAC"))
    rows = [{"id": f"NHU0{n}", "caption": f"item {n}", "audio": "wav", "duration": 1.5} for n in numbers()]
    document = {"num_captions_per_audio": 1, "data": rows}
    write(folder / "json_files" / "bbc_final.json", json.dumps(document))


@layout("datasets' `Audio` column, encoded", "{}/train.parquet", modality="audio")
def audio_feature(folder: Path) -> None:
    rows = {"audio": [{"bytes": sound(n), "path": f"{n}.wav"} for n in numbers()]}
    rows["text"] = [f"item {n}" for n in numbers()]  # type: ignore[assignment]
    table = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    table.to_parquet(folder / "train.parquet")


@layout("datasets' `Audio` column, paths of files", "{}/train.parquet", modality="audio")
def audio_paths(folder: Path) -> None:
    sounds(folder / "clips")
    rows = {"audio": [{"bytes": None, "path": str(folder / "clips" / f"{n}.wav")} for n in numbers()]}
    rows["text"] = [f"item {n}" for n in numbers()]  # type: ignore[assignment]
    Dataset.from_dict(rows).cast_column("audio", Audio(decode=False)).to_parquet(folder / "train.parquet")


@layout("datasets' `Audio` column, decoded to arrays", "{}/train.parquet", modality="audio")
def audio_arrays(folder: Path) -> None:
    cells = [{"array": samples(n).tolist(), "sampling_rate": RATE_HZ} for n in numbers()]
    features = Features(
        {"audio": {"array": [Value("float32")], "sampling_rate": Value("int64")}, "text": Value("string")}
    )
    rows = {"audio": cells, "text": [f"item {n}" for n in numbers()]}
    Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")


def rendered() -> str:
    """The table of the documentation."""
    lines = ["| layout | command |", "|---|---|"]
    lines += [f"| {entry.name.replace('|', chr(92) + '|')} | `{entry.command}` |" for entry in LAYOUTS]
    return "\n".join(lines)


def document_with_table(document: str) -> str:
    """The document with the table of this list between its marks."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{rendered()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(document_with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
