"""A folder of drawings: one row of metadata.jsonl and one PNG per size for each of them."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from .held_out import FAMILIES, ICON_FAMILY, is_held_out

METADATA = "metadata.jsonl"
EMOJI_STYLES = ("noto", "twemoji", "fluent", "flat")  # what models draw and are measured by
# Further artists, rendered where they are asked for.
MORE_STYLES = ("emojione", "streamline", "blob", "fxemoji", "monotone", "contrast")
STYLES = (*EMOJI_STYLES, *MORE_STYLES, "icon")
# Styles of one family share ideas of a concept, so that a pair held out keeps all of them out.
FAMILY_OF_STYLE = {
    "noto": "noto",
    "twemoji": "twemoji",
    "fluent": "fluent",
    "flat": "fluent",
    "emojione": "emojione",
    "streamline": "streamline",
    "blob": "noto",
    "fxemoji": "fxemoji",
    "monotone": "emojione",
    "contrast": "fluent",
    "icon": ICON_FAMILY,
}

PEOPLE = "People & Body"
_TONE = r"(?:light|medium-light|medium|medium-dark|dark)"
_TONE_SUFFIX = re.compile(rf"^(.+?)(?:(?:-{_TONE}-skin-tone)+|(?:-{_TONE})+)$")


@dataclass(frozen=True)
class Drawing:
    """One drawing of one concept in one style, as a row of metadata.jsonl names it.

    `shared` says that all three families draw the concept and that it is not in People & Body;
    `held_out` says that no network may be trained on it. `name` and `keywords` are lower-case
    ASCII. `file_name` is the path of one rendered size inside the folder.
    """

    id: str
    file_name: str
    concept: str
    name: str
    keywords: tuple[str, ...]
    style: str
    family: str
    category: str
    shared: bool
    held_out: bool
    folder: Path = field(default=Path("."), compare=False, repr=False)

    def path(self, size: int) -> Path:
        """The PNG (RGBA, size x size pixels) of this drawing; it need not exist."""
        return self.folder / str(size) / self.style / f"{self.concept}.png"

    def to_row(self) -> dict:
        """This drawing as a JSON object."""
        names = ("id", "file_name", "concept", "name", "keywords", "style", "family", "category")
        row = {name: getattr(self, name) for name in (*names, "shared", "held_out")}
        return row | {"keywords": list(self.keywords)}

    @classmethod
    def from_row(cls, row: dict, folder: Path = Path(".")) -> "Drawing":
        """Read a JSON object; ValueError when a field is missing, of a wrong type or untrue."""
        texts = ("id", "file_name", "concept", "name", "style", "family", "category")
        for name, kind in [*((name, str) for name in texts), ("keywords", list)]:
            if not isinstance(row.get(name), kind):
                raise ValueError(f"field {name!r} is missing or is not a {kind.__name__}")
        for name in ("shared", "held_out"):
            if not isinstance(row.get(name), bool):
                raise ValueError(f"field {name!r} is missing or is not true or false")
        if FAMILY_OF_STYLE.get(row["style"]) != row["family"]:
            raise ValueError(f"style {row['style']!r} is not of the family {row['family']!r}")
        for name in ("concept", "file_name"):
            parts = row[name].split("/")
            if "\\" in row[name] or ".." in parts or "" in parts:
                raise ValueError(f"field {name!r} leaves the folder: {row[name]!r}")
        if "/" in row["concept"]:
            raise ValueError(f"field 'concept' is not a plain name: {row['concept']!r}")
        known = {name: row[name] for name in texts}
        keywords = tuple(str(word) for word in row["keywords"])
        held_out = row["held_out"] or (
            row["shared"]
            and row["family"] in FAMILIES
            and is_held_out(row["concept"], row["family"])
        )
        return cls(
            **known, keywords=keywords, shared=row["shared"], held_out=held_out, folder=folder
        )


def is_measured(drawing: Drawing) -> bool:
    """Whether it is held out to measure by: further artists' are only kept out of training."""
    return drawing.held_out and drawing.style in EMOJI_STYLES


def evaluation_drawings(drawings: list[Drawing]) -> list[Drawing]:
    """Held-out drawings of EMOJI_STYLES whose concept the two other families show in training."""
    own = [d for d in drawings if d.style in EMOJI_STYLES]
    trained = {(d.concept, d.family) for d in own if d.shared and not d.held_out}
    return [
        drawing
        for drawing in own
        if is_measured(drawing)
        and all(
            (drawing.concept, family) in trained for family in FAMILIES if family != drawing.family
        )
    ]


def base_concept(drawing: Drawing) -> str:
    """The concept, for people with the skin tone left out: "artist-dark-skin-tone" -> "artist"."""
    match = _TONE_SUFFIX.match(drawing.concept) if drawing.category == PEOPLE else None
    return match.group(1) if match else drawing.concept


def load_drawings(folder: str | os.PathLike) -> list[Drawing]:
    """The drawings that folder/metadata.jsonl lists, in its order.

    Raises:
        FileNotFoundError: when the folder holds no metadata.jsonl.
        ValueError: naming the line that is not a drawing, or an id that stands twice.
    """
    path = Path(folder) / METADATA
    if not path.is_file():
        raise FileNotFoundError(
            f"folder {str(folder)!r} holds no {METADATA}; make one with "
            f"`unclip-data emoji --output {folder}`"
        )
    drawings, seen = [], set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
            drawing = Drawing.from_row(row, Path(folder))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if drawing.id in seen:
            raise ValueError(f"{path}, line {number}: the id {drawing.id!r} stands twice")
        seen.add(drawing.id)
        drawings.append(drawing)
    return drawings


def save_drawings(folder: str | os.PathLike, drawings: list[Drawing]) -> None:
    """Write folder/metadata.jsonl, whole or not at all, ordered by id."""
    path = Path(folder) / METADATA
    rows = sorted(drawings, key=lambda drawing: drawing.id)
    text = "".join(json.dumps(drawing.to_row(), ensure_ascii=True) + "\n" for drawing in rows)
    write_whole(path, text.encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it there, so that no half of it is ever seen."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        staged.write_bytes(content)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def prepare_folder(folder: str | os.PathLike) -> list[Drawing]:
    """Make the folder, or take up one of drawings; return the drawings that it lists already.

    Raises:
        ValueError: when the path is a file, or a folder of something else.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output {str(folder)!r} is a file; name a folder")
    if (folder / METADATA).exists():
        return load_drawings(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"output {str(folder)!r} holds other files and no {METADATA}; name a new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return []


def files_present(folder: str | os.PathLike, size: int) -> set[str]:
    """The ids whose PNG of this size lies in the folder."""
    root = Path(folder) / str(size)
    if not root.is_dir():
        return set()
    return {
        f"{style.name}/{entry.name.removesuffix('.png')}"
        for style in root.iterdir()
        if style.is_dir()
        for entry in os.scandir(style)
        if entry.name.endswith(".png") and not entry.name.startswith(".")
    }
