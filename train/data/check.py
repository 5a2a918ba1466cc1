"""What a folder of drawings holds, what is wrong with it, and how its samples look."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from textwrap import wrap

from PIL import Image, ImageDraw

from .captions import all_captions
from .drawings import Drawing, files_present, load_drawings

MAX_EXAMPLES = 5
SHEET_COLUMNS, TILE, TEXT_HEIGHT = 6, 128, 64


def check_folder(folder: str | os.PathLike) -> dict:
    """Counts, file faults by reason, and caption lengths of a folder of drawings.

    A file that is missing at one size but there at another is no fault, since sizes are rendered
    for parts of a set; a drawing without any file is.

    Raises:
        FileNotFoundError, ValueError: when metadata.jsonl is missing or wrong.
    """
    folder = Path(folder)
    drawings = load_drawings(folder)
    listed = {drawing.id for drawing in drawings}
    sizes = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    faults: dict[str, list[str]] = {}
    seen, files = set(), {}
    for size in sizes:
        present = files_present(folder, size)
        files[str(size)] = len(present & listed)
        seen |= present
        for name in sorted(present - listed):
            faults.setdefault("not in metadata.jsonl", []).append(f"{size}/{name}.png")
        readable = [drawing for drawing in drawings if drawing.id in present]
        for reason, name in _file_faults(readable, size):
            faults.setdefault(reason, []).append(name)
    for name in sorted(listed - seen):
        faults.setdefault("no file of any size", []).append(name)
    return {
        "folder": str(folder),
        "drawings": len(drawings),
        "concepts": len({drawing.concept for drawing in drawings}),
        "shared_concepts": len({drawing.concept for drawing in drawings if drawing.shared}),
        "held_out_drawings": sum(drawing.held_out for drawing in drawings),
        "held_out_pairs": len({(d.concept, d.family) for d in drawings if d.held_out}),
        "by_style": _counts(drawing.style for drawing in drawings),
        "by_family": _counts(drawing.family for drawing in drawings),
        "by_category": _counts(drawing.category or "none" for drawing in drawings),
        "files_by_size": files,
        "faults": {
            reason: {"count": len(names), "examples": names[:MAX_EXAMPLES]}
            for reason, names in sorted(faults.items())
        },
        "captions": _caption_lengths(drawings),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _file_faults(drawings: list[Drawing], size: int) -> list[tuple[str, str]]:
    def fault(drawing: Drawing) -> tuple[str, str] | None:
        path = drawing.path(size)
        try:
            with Image.open(path) as picture:
                if picture.size != (size, size):
                    return "wrong size", f"{size}/{drawing.id}.png"
                picture.load()
        except (OSError, SyntaxError, ValueError):
            return "broken file", f"{size}/{drawing.id}.png"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [found for found in pool.map(fault, drawings) if found is not None]


def _caption_lengths(drawings: list[Drawing]) -> dict:
    captions = all_captions(drawings)
    if not captions:
        return {"count": 0}
    letters = [len(caption) for caption in captions]
    words = [len(caption.split()) for caption in captions]
    return {
        "count": len(captions),
        "letters": {"min": min(letters), "mean": round(mean(letters), 1), "max": max(letters)},
        "words": {"min": min(words), "mean": round(mean(words), 1), "max": max(words)},
        "longest": max(captions, key=len),
    }


def draw_sheet(samples: list[dict]) -> Image.Image:
    """A contact sheet of DrawingDataset samples, each over its caption."""
    rows = -(-len(samples) // SHEET_COLUMNS)
    width, height = TILE + 80, TILE + TEXT_HEIGHT
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, rows * height), "#dddddd")
    pen = ImageDraw.Draw(sheet)
    for number, sample in enumerate(samples):
        x, y = (number % SHEET_COLUMNS) * width, (number // SHEET_COLUMNS) * height
        picture = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((TILE, TILE), Image.Resampling.BICUBIC), (x + 8, y + 6))
        lines = wrap(sample["caption"], 32)[:4]
        pen.multiline_text((x + 8, y + TILE + 8), "\n".join(lines), fill="black", spacing=2)
    return sheet


def check_sheet_path(path: str | os.PathLike) -> None:
    """Refuse a sheet that would write over a file or cannot be written; ValueError says why."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"sheet {str(path)!r} exists; name another file")
    if path.suffix.lower() != ".png":
        raise ValueError(f"sheet {str(path)!r} must end in .png")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"sheet: there is no folder {str(path.parent)!r}")


def save_sheet(
    folder: str | os.PathLike, path: str | os.PathLike, size: int | None = None, count: int = 48
) -> None:
    """Write a contact sheet of training samples; half plain, half composed.

    Args:
        folder: the drawings.
        path: a PNG that does not exist yet.
        size: of the pictures to read; the smallest rendered when None.
        count: how many samples.

    Raises:
        ValueError: when the path exists, is not a PNG, or nothing is rendered.
    """
    check_sheet_path(path)
    if size is None:
        sizes = sorted(int(entry.name) for entry in Path(folder).iterdir() if entry.name.isdigit())
        if not sizes:
            raise ValueError(f"folder {str(folder)!r} holds no pictures to show")
        size = sizes[0]

    from .dataset import DrawingDataset

    dataset = DrawingDataset(folder, size, cache=False)
    draw_sheet([dataset[position] for position in range(count)]).save(path)
