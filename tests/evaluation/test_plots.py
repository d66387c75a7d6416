"""Figures hold what they should show; none touches Matplotlib's global state."""

import json

import numpy as np
import pytest
from PIL import Image

from xmodal_hf.evaluation import plots


@pytest.fixture()
def pairs():
    rng = np.random.default_rng(0)
    items = rng.normal(size=(30, 8))
    return items, items[np.repeat(np.arange(30), 2)] + 0.2 * rng.normal(size=(60, 8)), np.repeat(np.arange(30), 2)


def is_png(figure, path):
    figure.savefig(path)
    return Image.open(path).size[0] > 300


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_joint_map_joins_pairs(pairs, method, tmp_path):
    figure = plots.joint_map(*pairs, method=method, max_items=12)
    axes = figure.axes[0]
    lines, first, second = axes.collections
    assert len(lines.get_segments()) == len(first.get_offsets()) == len(second.get_offsets()) == 12
    ends = np.array(lines.get_segments())
    assert np.allclose(ends[:, 0], first.get_offsets()) and np.allclose(ends[:, 1], second.get_offsets())
    assert is_png(figure, tmp_path / "map.png")


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_a_collapsed_model_has_a_map(method, tmp_path):
    collapsed = np.ones((9, 4))
    assert is_png(plots.joint_map(collapsed, collapsed, np.arange(9), method=method), tmp_path / "map.png")


def test_joint_map_is_seeded_and_refuses_unknown_methods(pairs):
    offsets = [plots.joint_map(*pairs, max_items=5, seed=s).axes[0].collections[1].get_offsets() for s in (0, 0, 1)]
    assert np.array_equal(offsets[0], offsets[1]) and not np.allclose(offsets[0], offsets[2])
    with pytest.raises(ValueError, match="unknown method 'umap'"):
        plots.joint_map(*pairs, method="umap")


def test_cosine_histogram_separates_pairs(pairs, tmp_path):
    figure = plots.cosine_histogram(*pairs)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    means = [float(label.split("mean ")[1].rstrip(")")) for label in labels]
    assert labels[0].startswith("unpaired") and means[0] < 0.3 and means[1] > 0.8
    assert is_png(figure, tmp_path / "histogram.png")


def test_spectrum_draws_each_modality(pairs, tmp_path):
    figure = plots.spectrum({"image": pairs[0], "text": pairs[1]})
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [8, 8]
    assert is_png(figure, tmp_path / "spectrum.png")


def test_scatter_names_each_model(tmp_path):
    models = {name: {"alignment": i, "text_uniformity": -i} for i, name in enumerate(("before", "after"))}
    figure = plots.alignment_uniformity_scatter(models)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]
    assert is_png(figure, tmp_path / "scatter.png")


def test_confusion_matrix_shows_row_shares():
    figure = plots.confusion_matrix([[3, 1], [0, 0]], ["dog", "cat"])
    assert np.array_equal(figure.axes[0].images[0].get_array(), [[75, 25], [0, 0]])
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["25", "75"]


def test_loss_curves_skip_foreign_lines_and_average(tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [{"step": step, "loss": 100.0 - step} for step in range(100)] + [{"event": "saved"}]
    log.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    raw, smooth = plots.loss_curves({"phase 1": log}).axes[0].lines
    assert np.array_equal(raw.get_ydata(), 100.0 - np.arange(100))
    assert smooth.get_ydata()[0] == 100 and np.allclose(smooth.get_ydata()[1:], raw.get_ydata()[1:] + 0.5)
    with pytest.raises(ValueError, match="no line with both 'step' and 'accuracy'"):
        plots.loss_curves({"phase 1": log}, key="accuracy")


def test_contact_sheet_has_a_panel_a_picture(tmp_path):
    picture = Image.new("RGBA", (8, 8), "red")
    figure = plots.contact_sheet(["a red square", "a blue one"], [[picture] * 3, [picture] * 2], [[0.9] * 3, [0.1] * 2])
    assert sum(len(axes.images) for axes in figure.axes) == 5
    assert is_png(figure, tmp_path / "sheet.png")


def test_contact_sheet_frames_what_is_held_out():
    picture = Image.new("RGB", (8, 8), "red")
    figure = plots.contact_sheet(["red"], [[picture] * 3], framed=[[False, True, False]])
    widths = [axes.spines["left"].get_linewidth() for axes in figure.axes if axes.images]
    assert widths[1] > widths[0] == widths[2]


def test_contact_sheet_of_sounds_has_captions_below_spectrograms(tmp_path):
    picture = plots.spectrogram_picture(np.arange(12.0).reshape(4, 3))
    assert picture.size == (4, 3)
    assert sum(picture.getpixel((0, 2))) < sum(picture.getpixel((3, 0)))  # first and lowest, last and highest
    assert plots.spectrogram_picture(np.zeros((4, 3))).getpixel((0, 0)) == picture.getpixel((0, 2))  # silence
    figure = plots.contact_sheet(["bells"], [[picture] * 2], [[0.9, 0.1]], [["a bell", "a gong that is hit " * 3]])
    labels = [axes.get_xlabel() for axes in figure.axes if axes.images]
    assert labels[0] == "0.90\na bell" and len(labels[1].splitlines()) == 3
    assert is_png(figure, tmp_path / "sheet.png")


def test_pyplot_is_never_imported(interpreters):
    """Nor by other modules of the package, nor by what they use, which the server of interpreters has imported."""
    code = "import sys, xmodal_hf.evaluation.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert interpreters.run(["-c", code]).returncode == 0
