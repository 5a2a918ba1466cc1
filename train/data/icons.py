"""Material Design Icons: one black picture per icon, tinted in one of 8 colours when it is read."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from .drawings import Drawing, prepare_folder
from .emoji import (
    IconSet,
    Package,
    check_sizes,
    parse_icon_set,
    plain_text,
    read_json,
    render_folder,
    select,
)
from .held_out import ICON_FAMILY

ICON_PACKAGE = Package(
    "@iconify-json/mdi",
    "1.2.3",
    "O3cLwbDOK7NNDf2ihaQOH5F9JglnulNDFV7WprU2dSoZu3h3cWH//h74uQAB87brHmvFVxIOkuBX2sZSzYhScg==",
)


def list_icons(icons: IconSet, aliases: dict, folder: Path) -> list[Drawing]:
    """Every visible icon, named by its id, with its plain aliases as keywords; none held out."""
    words = defaultdict(list)
    for alias, target in aliases.items():
        if target.keys() == {"parent"}:
            words[target["parent"]].append(plain_text(alias.replace("-", " ")))
    return [
        Drawing(
            id=f"icon/{concept}",
            file_name=f"128/icon/{concept}.png",
            concept=concept,
            name=plain_text(concept.replace("-", " ")),
            keywords=tuple(words[concept]),
            style="icon",
            family=ICON_FAMILY,
            category=icons.categories.get(concept, ""),
            shared=False,
            held_out=False,
            folder=folder,
        )
        for concept in icons.bodies
    ]


def make_icons(
    folder: str | os.PathLike,
    sizes: Iterable[int] = (128,),
    limit: int | None = None,
    workers: int | None = None,
) -> dict:
    """Fetch Material Design Icons and render those that the folder lacks; return a report.

    Args:
        folder: where {size}/icon/{concept}.png (black on nothing) and metadata.jsonl are put.
        sizes: pixels of a side, each 8 to 4096.
        limit: at most this many icons.
        workers: processes; the machine's cores when None.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as the arguments, npm or its package fail.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    sizes, folder = check_sizes(sizes), Path(folder)
    prepare_folder(folder)
    raw, metadata, chars = read_json(ICON_PACKAGE, "icons.json", "metadata.json", "chars.json")
    icons = parse_icon_set(raw, metadata, chars)
    drawings = list_icons(icons, raw.get("aliases", {}), folder)
    chosen = select(drawings, ["icon"], False, limit)
    return render_folder(folder, chosen, {"icon": icons}, sizes, workers or os.cpu_count() or 1)
