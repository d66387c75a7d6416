"""Publish a model, or a metric, on the Hub: card, results, plots and the code that runs it, in one commit.

    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip --license mit --dry_run
    python training_scripts/publish_model.py --checkpoint outputs/clip --repo_id user/clip --private --tag v1.0

The access token is that of `hf auth login`, or HF_TOKEN in the environment. Publishing again sends only what changed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xmodal_hf.hub.arguments import CardArguments, PublishArguments
from xmodal_hf.training.arguments import parse_arguments

DRY_RUN_FOLDER = Path("outputs/publish")


def main(args: Sequence[str] | None = None) -> None:
    """Write the folder and send it; with `--dry_run`, list it."""
    arguments, card = parse_arguments((PublishArguments, CardArguments), "Publish a model on the Hub.", args)

    # After parsing: --help and a wrong option answer without the Hub's client.
    from xmodal_hf.hub.publish import HubError, file_table, list_files

    try:
        if arguments.card_only:
            print(write_card(arguments, card))
        elif arguments.dry_run:
            folder = stage(arguments, card, Path(arguments.output_dir or DRY_RUN_FOLDER))
            print(file_table(list_files(folder)))
            print(f"This is {folder}. Without --dry_run, what differs from {arguments.repo_id} would be sent.")
        elif arguments.output_dir is not None:
            push(arguments, stage(arguments, card, Path(arguments.output_dir)))
        else:
            with tempfile.TemporaryDirectory(prefix="xmodal_hf-") as temporary:
                push(arguments, stage(arguments, card, Path(temporary) / "folder"))
    except (HubError, ValueError, OSError) as error:
        sys.exit(f"publish_model.py: error: {error}")


def stage(arguments: PublishArguments, card: CardArguments, folder: Path) -> Path:
    """Write exactly what is sent."""
    from xmodal_hf.hub.metric_space import stage_metric
    from xmodal_hf.hub.staging import stage_checkpoint

    if arguments.metric is not None:
        return stage_metric(arguments.metric, folder)
    return stage_checkpoint(Path(str(arguments.checkpoint)), folder, arguments.repo_id, card)


def push(arguments: PublishArguments, folder: Path) -> None:
    """Send the folder and print what was sent."""
    from xmodal_hf.hub.publish import file_table, push_folder

    kind = {"repo_type": "space", "space_sdk": "gradio"} if arguments.metric is not None else {}
    published = push_folder(
        folder,
        arguments.repo_id,
        private=arguments.private,
        branch=arguments.branch,
        tag=arguments.tag,
        message=arguments.message,
        **kind,
    )
    if published.sent:
        print(file_table(published.sent))
    for path in published.deleted:
        print(f"removed {path}, which the model no longer has")
    done = "sent" if published.sent or published.deleted else "nothing had changed"
    tagged = f", tagged {arguments.tag}" if arguments.tag else ""
    print(f"{published.url}: {done}, commit {published.commit[:12]}{tagged}")


def write_card(arguments: PublishArguments, card: CardArguments) -> Path:
    """Render the card into the checkpoint's folder."""
    from xmodal_hf.hub.model_card import CARD_NAME, CardSources, render_card

    checkpoint = Path(str(arguments.checkpoint))
    path = checkpoint / CARD_NAME
    path.write_text(render_card(CardSources.find(checkpoint, card), arguments.repo_id, card), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
