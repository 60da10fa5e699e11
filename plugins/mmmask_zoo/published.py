"""Published checkpoints by name: where their authors put them, under which licence, with which figures.

They stand in `published.csv`, one a row, named `system/size/stage` after the format that reads it. Addresses, licences
and figures are those that the systems' own pages state; no file is kept here. Figures are accuracies in percent. A
revision stands for `main` in an address where the page that lists the file was of that revision. ConvMAE's fine-tuned
file is not among them: how it pools its features is not known, and the format refuses it.

Nothing here imports torch: `mmmask list` reads this.
"""

from __future__ import annotations

import csv
import json
from importlib.resources import files

from mmmask.hooks import Publish


def publish_all(publish: Publish) -> None:
    """Publishes every row."""
    with files("mmmask_zoo").joinpath("published.csv").open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            publish(
                row["name"],
                row["address"],
                row["name"].partition("/")[0],
                row["licence"],
                row["description"],
                by_hand=row["by_hand"] == "yes",
                encoder_alone=row["encoder_alone"] == "yes",
                options=json.loads(row["options"] or "{}"),
            )
