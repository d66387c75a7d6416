"""Every measured number of the README, of the documentation and of the benchmarks' notes is in its results file."""

import ast
import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from xmodal_hf.study.tables import headline_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
FOLDERS = ("docs", "benchmarks", "examples", "training_scripts", "model_cards", ".github")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
PAGES = [page for page in PAGES if not {"_build", "results"} & set(page.parts)]
NOTES = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")


def rows(first_cells: str, document: str = README) -> list[list[str]]:
    """Return the cells of the table whose header starts with these cells."""
    table = document[document.index(f"| {first_cells} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def read(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def test_demo_sentence():
    results = read("model_cards/openmoji-demo/results.json")
    before, after = ("retrieval_before", "retrieval_after")
    (text_before, text_after), (image_before, image_after) = (
        [f"{results[state][f'{way}_recall@10']:.2f} %" for state in (before, after)]
        for way in ("text_to_image", "image_to_text")
    )
    assert (
        f"On {results[after]['num_items']} held-out emoji, of which no variant is in the training data, contrastive "
        f"training raises text-to-image recall@10 from {text_before} to {text_after} and image-to-text recall@10 from "
        f"{image_before} to {image_after}, where chance is {results['meta']['chance_recall@10']:.2f} %"
    ) in re.sub(r"\s+", " ", README)
    assert f"in {results['meta']['cpu_seconds']:.0f} seconds of a core" in README


def test_sentence_of_the_audio_demo():
    results = read("model_cards/soundfont-demo/results.json")
    page = (ROOT / "docs" / "tutorials" / "audio.md").read_text(encoding="utf-8")
    states = [results[f"retrieval_{state}"] for state in ("before", "after")]
    (text_before, text_after), (audio_before, audio_after) = (
        [f"{state[f'{way}_recall@1']:.2f} %" for state in states] for way in ("text_to_audio", "audio_to_text")
    )
    assert (
        f"On {states[1]['num_items']} held-out sounds, contrastive training raises text-to-audio recall@1 from "
        f"{text_before} to {text_after} and audio-to-text recall@1 from {audio_before} to {audio_after}"
    ) in re.sub(r"\s+", " ", page)


def test_answers_of_the_readme_are_those_of_the_demo():
    """What its ten lines print: the best held-out emoji of some of the demo's queries."""
    answers = read("model_cards/openmoji-demo/results.json")["search"]
    (output,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    lines = [line.split(" -> ") for line in output.strip().splitlines()]
    assert len(lines) == 3
    for query, listed in lines:
        captions = ast.literal_eval(listed)
        # The demo may answer from its training pictures too, and says then which are held out.
        known = [
            answer["caption"] if isinstance(answer, dict) else answer
            for answer in answers[query]
            if not isinstance(answer, dict) or answer["held_out"]
        ]
        assert (
            listed == str(captions)
            and known
            and len(captions) == 3
            and captions[: len(known)] == known[: len(captions)]
        )
        assert f'"{query}"' in README  # the code asks for it


def test_speed_sentence():
    step = read("benchmarks/results/contrastive_step_cpu.json")["contrastive_step"][0]
    compared = {
        (run["objective"], run["method"]): run for run in read("benchmarks/results/losses_cpu.json")["compared"]
    }
    ours, peer = compared["cyclip", "streamed"], compared["cyclip", "dense"]
    rate, memory = step["ratios"]["open_clip"]["ratio"], ours["extra_bytes"] / peer["extra_bytes"]
    assert (
        f"a training step of CLIP ViT-B/32 runs at {rate:.2f} times the rate of open_clip on two cores in fp32, and "
        f"CyCLIP's loss of {ours['n']:,} pairs takes {memory:.2f} of the memory of the dense formula"
    ) in re.sub(r"\s+", " ", README)


def test_no_table_of_the_readme_is_long():
    tables = re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)
    assert all(len(table.splitlines()) <= 2 + 6 for table in tables)


@pytest.mark.parametrize("row", rows("loss", NOTES), ids=lambda row: f"{row[0]}-{row[1]}")
def test_loss_table(row):
    compared = {
        (run["objective"], run["method"]): run for run in read("benchmarks/results/losses_cpu.json")["compared"]
    }
    ours, peer = compared[row[0], "streamed"], compared[row[0], row[1]]
    assert (ours["n"], ours["d"], ours["precision"]) == (8192, 512, "float32")
    assert row[2:] == [f"{ours[name] / peer[name]:.2f}" for name in ("seconds", "extra_bytes")]


@pytest.mark.parametrize("row", rows("what | peer", NOTES), ids=lambda row: f"{row[0]}-{row[1]}")
def test_goals_of_the_notes(row):
    """Each measured number is in the file that its row names."""
    measured = row[3].strip("*")
    decimals = len(measured.partition(".")[2])

    def ratios(value, key=""):
        """Every number at or under a key that names ratios."""
        if isinstance(value, dict):
            is_ratio = key in ("ratio", "ratios", "times_of_peer")
            parts = {name: part for name, part in value.items() if name != "goal"}
            return [n for name, part in parts.items() for n in ratios(part, key if is_ratio else name)]
        if isinstance(value, list):
            return [number for part in value for number in ratios(part, key)]
        is_number = isinstance(value, int | float)
        return [value] if key in ("ratio", "ratios", "times_of_peer") and is_number else []

    results = read(f"benchmarks/results/{row[4]}")
    found = ratios(results)
    if row[4] == "losses_cpu.json":  # has no ratios
        compared = {(run["objective"], run["method"]): run for run in results["compared"]}
        ours, peer = compared["cyclip", "streamed"], compared["cyclip", "dense"]
        found = [ours[name] / peer[name] for name in ("seconds", "extra_bytes")]
    assert measured in {f"{number:.{decimals}f}" for number in found}


@pytest.mark.parametrize("row", rows("sound | single: root mean square", NOTES), ids=lambda row: row[0])
def test_log_mel_table(row):
    results = read("benchmarks/results/log_mel.json")
    single, double = (results["difference_db"][row[0]][precision] for precision in ("single", "double"))
    assert row[1:4] == [f"{value:.1e}" for value in (single["root_mean_square"], single["most"], double["most"])]
    lowest = [results["cosine"][tower][row[0]]["lowest"] for tower in ("trained tower", "aiSFX")]
    assert row[4:] == [f"1 - {1 - value:.0e}" for value in lowest]


@pytest.mark.parametrize("row", rows("task | ours", NOTES), ids=lambda row: row[0])
def test_memory_table(row):
    measured = {task["task"]: task for task in read("benchmarks/results/effective_batch_cpu.json")["effective_batch"]}
    methods = [measured[row[0]]["methods"][name] for name in ("ours", "peer", "micro-batch alone")]
    values = [method[key] for key in ("peak_mib", "peak_mib_without_holes") for method in methods]
    assert row[1:] == [f"{value:.0f}" for value in (*values, measured[row[0]]["gradients_mib"])]


@pytest.mark.parametrize("row", rows("items | of", NOTES), ids=lambda row: f"{row[0]}-{row[1]}")
def test_table_of_large_batches(row):
    (task,) = read(f"benchmarks/results/{row[5]}")["effective_batch"]
    peaks = [f"{task['methods'][name]['peak_mib']:.0f}" for name in ("ours", "peer", "micro-batch alone")]
    assert row[:5] == [str(task["items"]), task["task"], *peaks] and task["micro"] == 128


@pytest.mark.parametrize("study", ["vision", "pretrained", "audio"])
def test_study_tables(study):
    assert headline_table(read(f"model_cards/study-{study}-small/results.json")) in STUDIES


def test_sentences_of_the_study_of_a_pretrained_encoder():
    results = read("model_cards/study-pretrained-small/results.json")
    frozen = {"objective": "CLIP", "pairs": "6000", "training": "frozen"}
    cells = [cell for cell in results["cells"].values() if cell["levels"] == frozen]
    assert len(cells) == 5
    to_image, to_text = (
        fmean(cell["retrieval"][f"{way}_recall@10"] for cell in cells) for way in ("text_to_image", "image_to_text")
    )
    tower, projected = (fmean(cell[task]["stsb"] for cell in cells) for task in ("sts_text_tower", "sts"))
    assert to_image >= 48 and to_text >= 50 and tower >= 81.5
    words = re.sub(r"\s+", " ", STUDIES)
    assert (
        f"reach a text→image R@10 of {to_image:.2f} and an image→text R@10 of {to_text:.2f} with the STS-B of "
        f"all-MiniLM-L6-v2 before the projection, {tower:.2f}, and {projected:.2f} after it"
    ) in words

    def answer(before, after, metric):
        asked = (before, after, metric)
        (found,) = (one for one in results["answers"] if (one["before"], one["after"], one["metric"]) == asked)
        return found

    costs = answer("frozen", "contrastive", "sts.average")
    keeps = answer("contrastive", "joint sup", "sts.average")
    pays = answer("frozen", "joint sup", "retrieval.text_to_image_recall@10")
    assert [found["verdict"] for found in (costs, keeps, pays)] == ["supported", "supported", "opposite"]
    less = answer("frozen", "contrastive", "retrieval.text_to_image_recall@10")
    assert less["verdict"] == "opposite"
    assert (
        f"costs sentence quality, {-costs['difference']:.2f} points of `STS`, and {-less['difference']:.2f} points of "
        "text→image R@10"
    ) in words
    assert f"{keeps['difference']:.2f} points above contrastive training alone" in words
    assert f"costs {-pays['difference']:.2f} points of text→image R@10 against the frozen towers" in words
    for way in ("text_to_image", "image_to_text"):
        assert answer("contrastive", "joint sup", f"retrieval.{way}_recall@10")["verdict"] == "no difference resolved"
        assert answer("frozen", "LoRA", f"retrieval.{way}_recall@10")["verdict"] == "no difference resolved"
    adapter = answer("contrastive", "LoRA", "sts.average")
    assert (
        adapter["verdict"] == "supported" and f"adapter keeps {adapter['difference']:.2f} points of `STS` more" in words
    )
    assert {
        answer(before, "joint unsup", metric)["verdict"]
        for before, metrics in {
            "frozen": ("retrieval.text_to_image_recall@10", "retrieval.image_to_text_recall@10"),
            "contrastive": ("sts.average", "sts_text_tower.average", "retrieval.text_to_image_recall@10"),
        }.items()
        for metric in metrics
    } == {"no difference resolved"}
    assert {one["verdict"] for one in results["answers"] if "Cyclic" in one["claim"]} == {"opposite"}
    of_retrieval = [one for one in results["answers"] if one["before"] == "frozen" and "retrieval" in one["metric"]]
    assert len(of_retrieval) == 8 and "supported" not in {one["verdict"] for one in of_retrieval}


def test_sentences_of_the_study_of_images():
    results = read("model_cards/study-vision-small/results.json")
    answers = {(one["claim"], one["before"], one["after"], one["metric"]): one for one in results["answers"]}
    tasks, quality = (
        f"Sentence training improves {what}"
        for what in ("vision-language tasks", "the quality of the language encoder")
    )
    to_image, to_text = (f"retrieval.{way}_recall@10" for way in ("text_to_image", "image_to_text"))
    first = [answers[tasks, "raw", "sup first", metric] for metric in (to_image, to_text)]
    first.append(answers[quality, "raw", "sup first", "sts_text_tower.average"])
    words = re.sub(r"\s+", " ", STUDIES)
    assert (
        "first raise text→image R@10 by {:.2f} points over the raw language model, image→text R@10 by {:.2f} and the "
        "STS of the text tower by {:.2f}"
    ).format(*(one["difference"] for one in first)) in words
    assert {one["verdict"] for one in first} == {"reproduced"}

    def verdicts(claim, before, after):
        found = [one["verdict"] for key, one in answers.items() if claim in key[0] and key[1:3] == (before, after)]
        assert found
        return set(found)

    def verdict(claim, before, after, metric):
        return answers[claim, before, after, metric]["verdict"]

    nothing = {"no difference resolved"}
    assert verdicts(quality, "raw", "sup joint") == {"reproduced"}
    less = answers[tasks, "raw", "sup joint", to_text]
    assert less["verdict"] == "opposite" and f"lower image→text R@10 by {-less['difference']:.2f} points" in words
    assert verdict(tasks, "raw", "sup joint", to_image) == "no difference resolved"
    below = {
        verdict("Joint training is better than supervised sentences first", "sup first", "sup joint", metric)
        for metric in (to_image, to_text)
    }
    assert below == {"opposite"}
    assert verdict(quality, "raw", "unsup joint", "sts_text_tower.average") == "opposite"
    little = [answers[tasks, "raw", arm, to_image] for arm in ("unsup first", "unsup joint")]
    assert {one["verdict"] for one in little} == {"reproduced"}
    assert (
        "adds {:.2f} points to text→image R@10 first and {:.2f} jointly".format(*(one["difference"] for one in little))
        in words
    )
    cost = "Sentence training costs cross-modal alignment"
    arms = ("unsup first", "sup first", "unsup joint", "sup joint")
    costly = {arm for arm in arms if verdict(cost, "raw", arm, "representation.alignment") == "reproduced"}
    closer = {arm for arm in arms if verdict(cost, "raw", arm, "representation.modality_gap") == "opposite"}
    assert costly == {"unsup joint"} and closer == {"sup first", "sup joint"}
    taught = answers[
        "Contrastive training costs what sentences first have taught", "sup, phase 1", "sup first", "sts.average"
    ]
    assert (
        taught["verdict"] == "supported"
        and f"training takes {-taught['difference']:.2f} points of STS from what" in words
    )
    assert {one["verdict"] for one in answers.values() if "more uniform" in one["claim"]} == {"reproduced"}
    assert verdicts("the more pairs", "raw", "sup first") == nothing
    assert {
        one["verdict"] for one in answers.values() if "Cyclic" in one["claim"] and "retrieval" in one["metric"]
    } == {"opposite"}


def test_sentences_of_the_study_of_images_on_its_language_model():
    results = read("model_cards/study-vision-small/results.json")
    words = re.sub(r"\s+", " ", STUDIES)
    random, model = (
        fmean(one["sts"]["average"] for one in results["baselines"].values() if one["name"] == name)
        for name in ("random word vectors", "language model")
    )
    assert f"reaches the STS of random word vectors, {random:.2f}, after contrastive training" in words
    trained = results["meta"]["language_models"]["bert"]
    assert f"modelling for {trained['steps']:,} steps, until a loss of {trained['last_loss']:.2f}" in words
    cells = list(results["cells"].values())
    assert max(
        max(cell["sts"]["average"], cell["sts_text_tower"]["average"]) for cell in cells if "retrieval" in cell
    ) < (random + 0.1)
    sup, unsup = (
        fmean(cell["sts"]["average"] for cell in cells if cell["levels"]["language"] == f"{kind}, phase 1")
        for kind in ("sup", "unsup")
    )
    assert unsup < model < random < sup < random + 1


def test_sentences_of_the_study_of_audio():
    results = read("model_cards/study-audio-small/results.json")
    answers = {(one["claim"], one["after"], one["metric"]): one for one in results["answers"]}
    to_audio, to_text = (f"retrieval.{way}_recall@10" for way in ("text_to_audio", "audio_to_text"))
    claim = "Sentence training improves audio-language tasks, at all amounts of pairs"
    told = [answers[claim, arm, metric] for arm in ("sup first", "unsup first") for metric in (to_audio, to_text)]
    told.append(answers[claim, "unsup joint", to_audio])
    assert {one["verdict"] for one in told} == {"supported"}
    words = re.sub(r"\s+", " ", STUDIES)
    assert (
        "first raise text→audio R@10 by {:.2f} points over the raw language model and audio→text R@10 by {:.2f}, over "
        "both objectives and amounts of pairs; unsupervised sentences first raise them by {:.2f} and {:.2f}, and "
        "jointly, for text→audio, by {:.2f}."
    ).format(*(one["difference"] for one in told)) in words
    of_many = "Sentence training improves audio-language tasks when pairs are many"
    reproduced = {
        (arm, metric)
        for (claim, arm, metric), one in answers.items()
        if claim == of_many and one["verdict"] == "reproduced"
    }
    assert reproduced == {
        ("unsup first", to_audio),
        ("unsup first", to_text),
        ("sup first", to_audio),
        ("unsup joint", to_audio),
    }
    few = [
        answers["Sentence training improves audio-language tasks when pairs are few", "sup first", metric]
        for metric in (to_audio, to_text)
    ]
    assert {one["verdict"] for one in few} == {"supported"}
    many = {one["verdict"] for one in results["answers"] if "the more pairs" in one["claim"]}
    assert many == {"no difference resolved"}
    gains = results["beside"]["rows"]
    resolved = [one for one in gains if one["p_holm"] < 0.05]
    assert f"of the {len(gains)} gains that they share, {len(resolved)} are resolved as different" in words
    assert len(resolved) == 3 and all(one["difference"] > 0 for one in resolved)
    assert results["beside"]["title"].endswith("vision-language, small")
    cyclic = {one["verdict"] for one in results["answers"] if "Cyclic" in one["claim"]}
    assert cyclic == {"opposite"}


def test_sentences_of_the_study_of_audio_on_training_minilm():
    answers = read("model_cards/study-audio-small/results.json")["answers"]
    words = re.sub(r"\s+", " ", STUDIES)

    def answer(before, after, metric):
        asked = (f"MiniLM {before}", f"MiniLM {after}", metric)
        (found,) = (one for one in answers if (one["before"], one["after"], one["metric"]) == asked)
        return found

    to_audio = "retrieval.text_to_audio_recall@10"
    assert (
        f"text→audio R@10 by {answer('frozen', 'trained', to_audio)['difference']:.2f} points over the frozen" in words
    )
    gains = {one["verdict"] for one in answers if "over a frozen one" in one["claim"]}
    assert gains == {"supported"}
    adapter, below = answer("frozen", "LoRA", to_audio), answer("trained", "LoRA", to_audio)
    assert below["verdict"] == "supported"
    assert (
        f"a LoRA adapter text→audio R@10 by {adapter['difference']:.2f} points, "
        f"which is {-below['difference']:.2f} below contrastive training alone"
    ) in words
    costs = {one["verdict"] for one in answers if one["claim"].endswith("MiniLM costs sentence quality")}
    assert "supported" not in costs
    better = answer("frozen", "sup joint", "sts.average")
    assert better["verdict"] == "opposite" and f"raises `STS` by {better['difference']:.2f} points over the" in words
    tasks = {one["metric"] for one in answers if "over a frozen one" in one["claim"]}
    assert {answer("trained", "sup joint", metric)["verdict"] for metric in tasks} == {"no difference resolved"}


def test_retrieval_protocols_sentence():
    distinct, plain = (read("benchmarks/results/retrieval_protocols.json")[name] for name in ("distinct", "plain"))
    (there, here), (back, same) = (
        (f"{distinct[name]:.2f}", f"{plain[name]:.2f}")
        for name in ("text_to_image_recall@10", "image_to_text_recall@10")
    )
    words = re.sub(r"\s+", " ", (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))
    assert (
        f"{distinct['num_items']:,} pictures with {distinct['num_texts']:,} captions of which "
        f"{distinct['num_distinct_texts']:,} are distinct, text-to-image recall@10 is {there} % under the distinct "
        f"protocol and {here} % under the plain one, and image-to-text recall@10 is {back} % under both"
    ) in words
    assert back == same and float(here) > 3 * 100 * 10 / distinct["num_items"]  # well above chance


def text_of(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings of a page: small letters, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """To a file of the repository, and to a heading in it where one is named."""
    missing = []
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)]*))?\)", text_of(page)):
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            missing.append(f"{path}#{anchor}")
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


def test_pages_are_found():
    assert len(PAGES) > 30 and {"README.md", "NOTES.md", "methods.md"} <= {page.name for page in PAGES}


def test_the_readme_links_to_files():
    assert len(re.findall(r"\]\((?!\w+:)", README)) > 5
