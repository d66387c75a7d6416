"""The page of a demo Space: search by text, image or sound, and zero-shot. Copied beside search.py as app.py."""

import argparse
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr

from search import Demo, Hit, titles, without_folders

NUM_EXAMPLES = 6
NOUNS = {"image": "image", "audio": "sound"}
# Number of answers.
TOP_K = {"image": 12, "audio": 6}
# Whether the page shows an example. For a sound it would show only the name of the file.
SHOWS_EXAMPLES = {"image": True, "audio": False}
# Style of the gallery: captions are below the images, never over them, whatever their length; all rows are visible; a
# phone shows three columns.
CSS = """
.answers .grid-wrap {max-height: none; overflow: visible}
.answers .grid-container {grid-template-columns: repeat(auto-fill, minmax(min(130px, 28%), 1fr)) !important;
    grid-template-rows: none !important; grid-auto-rows: auto !important}
.answers .thumbnail-lg {display: flex; flex-direction: column; height: auto; aspect-ratio: auto}
.answers .thumbnail-lg img {height: auto !important; aspect-ratio: 1; flex: none}
.answers .caption-label {position: static; max-width: 100%; padding: 2px 4px; border: 0; box-shadow: none;
    background: none; text-align: center; font-size: 11px; line-height: 1.2; white-space: normal}
"""


def build_page(demo: Demo) -> gr.Blocks:
    """Return the page of a model and its gallery."""
    settings, noun = demo.settings, NOUNS[demo.modality]
    top_k = TOP_K[demo.modality]
    first = demo.gallery[:NUM_EXAMPLES]
    examples = [[str(demo.folder / entry["file"])] for entry in first]
    names = None if SHOWS_EXAMPLES[demo.modality] else [entry["caption"] for entry in first]

    def search_text(text: str) -> Any:
        return show(demo.search_text(text, top_k), demo.modality)

    def search_item(value: Any) -> Any:
        # A visitor who removes the item sees no answers.
        return show([] if value is None else demo.search_item(value, top_k), demo.modality)

    with gr.Blocks(title=settings["title"]) as page:
        gr.Markdown(f"# {settings['title']}\n\n{settings['description']}")
        with gr.Tab("Search by text"):
            query = gr.Textbox(
                settings["queries"][0], label=f"Describe the {noun}", submit_btn="Search", autofocus=True
            )
            answers = ANSWERS[demo.modality](columns=6, render=False)
            texts = [[text] for text in settings["queries"]]
            gr.Examples(texts, query, answers, search_text, run_on_click=True, label="For example")
            for component in answers:
                component.render()
            gr.on([query.submit, page.load], shows_errors(search_text), query, answers, show_progress="hidden")
        with gr.Tab(f"Search by {noun}"), gr.Row():
            with gr.Column(scale=1):
                item = ITEM_COMPONENTS[demo.modality](f"Your {noun}")
                gr.Examples(examples, item, label="From the gallery", example_labels=names)
            with gr.Column(scale=2):
                alike = ANSWERS[demo.modality](columns=4, render=True)
            item.change(shows_errors(search_item), item, alike, show_progress="hidden")
        with gr.Tab("Zero-shot"), gr.Row():
            with gr.Column():
                subject = ITEM_COMPONENTS[demo.modality](f"Your {noun}")
                gr.Examples(examples, subject, label="From the gallery", example_labels=names)
            with gr.Column():
                labels = gr.Textbox("\n".join(settings["labels"]), label="Labels, one per line", lines=6)
                template = gr.Textbox(settings["template"], label="Sentence around each label")
                button = gr.Button("Classify", variant="primary")
                scores = gr.Label(label="Probabilities", num_top_classes=10)
            button.click(shows_errors(demo.classify), [subject, labels, template], scores)
        gr.Markdown(settings["attribution"])
    return page


class Picture(gr.Image):
    """An image whose file is handed on as it is: the app decodes it as training does, and says what is wrong with it.

    Gradio would open it first, and show a visitor "Error" where Pillow cannot.
    """

    is_template = True  # the browser shows it by the component of `gr.Image`; it has none of this name

    def preprocess(self, payload: Any) -> str | None:
        """Return the path of what a visitor has put in."""
        return payload.path if payload is not None and payload.path else super().preprocess(payload)


def item_of_images(label: str) -> gr.components.Component:
    """Return where a visitor puts an image."""
    return Picture(label=label, type="filepath", image_mode=None, height=280)


def item_of_sounds(label: str) -> gr.components.Component:
    """Return where a visitor puts a sound."""
    return gr.Audio(label=label, type="filepath", sources=["upload", "microphone"])


# Modality -> component for one item.
ITEM_COMPONENTS = {"image": item_of_images, "audio": item_of_sounds}


def gallery_of_images(columns: int, render: bool) -> list[gr.components.Component]:
    """Return one gallery for all answers."""
    style = {"show_label": False, "buttons": [], "height": "auto", "object_fit": "contain", "elem_classes": "answers"}
    return [gr.Gallery(columns=columns, render=render, **style)]


def players_of_sounds(columns: int, render: bool) -> list[gr.components.Component]:
    """Return a player for each answer."""
    return [gr.Audio(interactive=False, buttons=[], render=render) for _ in range(TOP_K["audio"])]


# Modality -> components for the answers.
ANSWERS = {"image": gallery_of_images, "audio": players_of_sounds}


def play(captioned: list[tuple[str, str]]) -> list[Any]:
    """Return the values of the players; those without an answer are hidden."""
    players = [gr.Audio(path, label=title, visible=True) for path, title in captioned]
    return players + [gr.Audio(visible=False)] * (TOP_K["audio"] - len(players))


# Answers, as paths and titles, -> the values of the components of `ANSWERS`.
VALUES: dict[str, Callable[[list[tuple[str, str]]], list[Any]]] = {"image": list, "audio": play}


def show(hits: list[Hit], modality: str) -> Any:
    """Return answers as the values of the components of `ANSWERS`."""
    return VALUES[modality](list(zip([str(hit.path) for hit in hits], titles(hits), strict=True)))


def shows_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a visitor read what is wrong with an input, without the folder in which Gradio keeps it."""

    @wraps(function)
    def run(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(without_folders(str(error), values)) from error

    return run


def launch(folder: Path, model: str | None = None, **options: Any) -> Any:
    """Serve the Space in a folder; `options` are those of Gradio's `launch`, and what it returns is returned.

    `model` is a folder or Hub id in place of the model that the Space names.
    """
    # The page uses the fonts of the system, so that nothing is loaded from elsewhere.
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return build_page(Demo(folder, model)).launch(
        theme=theme, css=CSS, footer_links=["gradio"], allowed_paths=[str(folder)], **options
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve this Space here.")
    parser.add_argument("--model", help="Folder or Hub id of the model. Default: the one that space.json names.")
    launch(Path(__file__).parent, parser.parse_args().model)
