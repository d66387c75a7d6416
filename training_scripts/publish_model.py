"""Publish a model, an adapter or a metric on the Hub: card, results, plots and the code that runs it, in one commit.

    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip --license mit --dry_run
    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip --private --tag v1.0
    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip --space user/clip-demo
    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip-text --text_only
    python training_scripts/publish_model.py --metric retrieval_recall --repo_id user/retrieval_recall

The access token is that of `hf auth login`, or HF_TOKEN in the environment. Publishing again sends only what changed.
The card says what CodeCarbon measured where its emissions.csv lies in the folders of the trainings.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal_hf.commands import run_command
from xmodal_hf.hub.arguments import CardArguments, PublishArguments, SpaceArguments, check_publishing
from xmodal_hf.options import parse_arguments

if TYPE_CHECKING:
    from xmodal_hf.hub.publish import Published

DRY_RUN_FOLDER = Path("outputs/publish")
REPOSITORY, SPACE_FOLDER = "repository", "space"
# Name of a file that marks a folder in which this script wrote the folders `repository` and `space`.
MARKER = ".publish_model"
SPACE = {"repo_type": "space", "space_sdk": "gradio"}


# Options that --help shows first.
EVERYDAY = ("checkpoint", "repo_id", "private", "license", "results", "space", "tag", "dry_run")


def main(args: Sequence[str] | None = None) -> None:
    """Write what is published and send it; with `--dry_run`, list it."""
    classes = (PublishArguments, CardArguments, SpaceArguments)
    arguments, card, space = parse_arguments(classes, __doc__, args, check_publishing, EVERYDAY)

    if arguments.card_only:
        print(write_card(arguments, card))
    elif arguments.dry_run or arguments.output_dir is not None:
        publish(arguments, card, space, Path(arguments.output_dir or DRY_RUN_FOLDER))
    else:
        with tempfile.TemporaryDirectory(prefix="xmodal_hf-") as temporary:
            publish(arguments, card, space, Path(temporary))


def publish(arguments: PublishArguments, card: CardArguments, space: SpaceArguments, folder: Path) -> None:
    """Write the folders below `folder`, and send or list them; nothing is sent before all are written."""
    from xmodal_hf.hub.space import pin_revision, stage_space

    if space.space is not None and (arguments.metric is not None or arguments.text_only):
        raise ValueError("--space shows a whole model of images or sounds: leave out --metric and --text_only")
    clear_earlier(folder)
    kind = SPACE if arguments.metric is not None else {}
    repository = stage(arguments, card, folder / REPOSITORY)
    page = folder / SPACE_FOLDER
    if space.space is not None:
        stage_space(Path(str(arguments.checkpoint)), page, arguments.repo_id, space)
    published = send(arguments, repository, arguments.repo_id, kind)
    if space.space is not None:
        if published is not None:
            pin_revision(page, published.commit)
        send(arguments, page, space.space, SPACE)


def clear_earlier(folder: Path) -> None:
    """Remove what an earlier run, finished or interrupted, wrote below `folder`; what somebody else did stays there."""
    marker = folder / MARKER
    if marker.exists():
        for name in (REPOSITORY, SPACE_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
    elif not any((folder / name).exists() for name in (REPOSITORY, SPACE_FOLDER)):
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text("repository and space beside this file are written anew by publish_model.py\n")


def stage(arguments: PublishArguments, card: CardArguments, folder: Path) -> Path:
    """Write exactly what is sent."""
    from xmodal_hf.hub.adapters import is_adapter, stage_adapter
    from xmodal_hf.hub.metric_space import stage_metric
    from xmodal_hf.hub.staging import files_left_out, stage_checkpoint, stage_text_encoder

    if arguments.metric is not None:
        return stage_metric(arguments.metric, folder)
    checkpoint = Path(str(arguments.checkpoint))
    if arguments.text_only:
        return stage_text_encoder(checkpoint, folder, arguments.repo_id, card, arguments.truncate_dim)
    if is_adapter(checkpoint):
        return stage_adapter(checkpoint, folder, arguments.repo_id, card)
    stage_checkpoint(checkpoint, folder, arguments.repo_id, card, arguments.include)
    if names := files_left_out(checkpoint, folder):
        print(f"These files are not sent, unless --include names them: {', '.join(names)}")
    return folder


def send(arguments: PublishArguments, folder: Path, repo_id: str, kind: dict[str, str]) -> Published | None:
    """Send a folder and print what was sent; in a dry run, list it only."""
    from xmodal_hf.hub.publish import file_table, list_files, push_folder

    if arguments.dry_run:
        print(file_table(list_files(folder)))
        print(f"This is {folder}. Without --dry_run, what differs from {repo_id} would be sent.")
        if kind == SPACE and arguments.metric is None:
            model = folder.parent / REPOSITORY
            print(f"Try the Space: python {folder / 'app.py'} --model {model} (needs pip install 'xmodal_hf[gradio]')")
        return None
    published = push_folder(
        folder,
        repo_id,
        private=arguments.private,
        branch=arguments.branch,
        tag=arguments.tag,
        message=arguments.message,
        delete=arguments.delete if folder.name == REPOSITORY else (),
        timeout=arguments.timeout,
        **kind,
    )
    if published.sent:
        print(file_table(published.sent))
    for path in published.deleted:
        print(f"removed {path}")
    if published.kept:
        print(f"These other weights stay in the repository, unless --delete names them: {', '.join(published.kept)}")
    done = "sent" if published.sent or published.deleted else "nothing had changed"
    tagged = f", tagged {arguments.tag}" if arguments.tag else ""
    print(f"{published.url}: {done}, commit {published.commit[:12]}{tagged}")
    return published


def write_card(arguments: PublishArguments, card: CardArguments) -> Path:
    """Render the card into the checkpoint's folder."""
    from xmodal_hf.hub.model_card import CARD_NAME, CardSources, render_card

    checkpoint = Path(str(arguments.checkpoint))
    path = checkpoint / CARD_NAME
    path.write_text(render_card(CardSources.find(checkpoint, card), arguments.repo_id, card), encoding="utf-8")
    return path


if __name__ == "__main__":
    run_command(main)
