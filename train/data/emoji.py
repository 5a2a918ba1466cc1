"""Open emoji sets: fetched from npm at pinned versions, named, and rendered to PNG files."""

import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256, sha512
from itertools import islice
from pathlib import Path

from .drawings import (
    EMOJI_STYLES,
    FAMILY_OF_STYLE,
    MORE_STYLES,
    PEOPLE,
    Drawing,
    files_present,
    prepare_folder,
    save_drawings,
    write_whole,
)
from .held_out import FAMILIES, is_held_out

# Sets with ids of their own for many characters, matched by the characters' names. EmojiOne and
# Streamline are matched by id alone, so that their drawings stay those that CLIPs were trained on.
MATCHED_BY_NAME = ("blob", "fxemoji", "monotone")
# Drawn in black alone, where a red heart is a blue one: no caption that names a hue is true there.
ONE_COLOUR_STYLES = ("monotone", "contrast")
HUES = frozenset("red orange yellow green blue purple brown pink".split())
# Drawings of another thing than their concept is: real pistols, a keyboard that makes music, a
# window on a screen; and a tram whose colours are missing, a black square.
UNTRUE = frozenset(
    "blob/water-pistol fxemoji/water-pistol monotone/water-pistol fxemoji/keyboard fxemoji/window "
    "fxemoji/tram-car".split()
)
MIN_SIZE, MAX_SIZE = 8, 4096


@dataclass(frozen=True)
class Package:
    """One npm package: its name, its pinned version and the base64 sha512 of its archive."""

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "fluent": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
    ),
    "streamline": Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
    ),
    "blob": Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
    ),
    "fxemoji": Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
    ),
    "monotone": Package(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
    ),
    "contrast": Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
    ),
    "names": Package(
        "emojibase-data",
        "17.0.0",
        "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
}


def cache_folder() -> Path:
    """Where fetched packages are kept: $XDG_CACHE_HOME/unclip, or ~/.cache/unclip."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unclip"


def fetch_package(package: Package) -> Path:
    """The package's archive in the cache, fetched by `npm pack` when it is not there.

    Raises:
        FileNotFoundError: when npm is not installed.
        RuntimeError: when npm fails, or the archive's sha512 is not the pinned one.
    """
    kept = cache_folder() / package.file_name
    if kept.is_file() and _has_integrity(kept, package):
        return kept
    if shutil.which("npm") is None:
        raise FileNotFoundError(
            f"npm is needed to fetch {package.name}@{package.version}; install Node.js, "
            f"or put the package's archive at {kept}"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as staging:
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent"]
        run = subprocess.run(command, cwd=staging, capture_output=True, text=True)
        archives = list(Path(staging).glob("*.tgz"))
        if run.returncode != 0 or len(archives) != 1:
            reason = (run.stderr.strip() or run.stdout.strip() or "no archive").splitlines()[-1]
            raise RuntimeError(f"npm could not fetch {package.name}@{package.version}: {reason}")
        if not _has_integrity(archives[0], package):
            raise RuntimeError(
                f"the archive of {package.name}@{package.version} has another sha512 than the "
                "pinned one; it was thrown away"
            )
        os.replace(archives[0], kept)
    return kept


def _has_integrity(path: Path, package: Package) -> bool:
    return base64.b64encode(sha512(path.read_bytes()).digest()).decode() == package.integrity


def read_json(package: Package, *members: str) -> list:
    """JSON files of a package (paths below package/); {} for one that it does not hold."""
    found = {}
    with tarfile.open(fetch_package(package)) as archive:
        for entry in archive:
            name = entry.name.removeprefix("package/")
            if name in members and entry.isfile():
                found[name] = json.load(archive.extractfile(entry))
    return [found.get(name, {}) for name in members]


@dataclass(frozen=True)
class IconSet:
    """The visible icons of one Iconify package: bodies, boxes, categories and characters."""

    bodies: dict[str, str]
    boxes: dict[str, tuple[float, float, float, float]]
    categories: dict[str, str]
    people: frozenset[str]
    chars: dict[str, str]

    def svg(self, icon: str) -> str:
        """A whole SVG document, its view box (left, top, width, height) in its own units."""
        box = " ".join(f"{side:g}" for side in self.boxes[icon])
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {spaces} viewBox="{box}">{self.bodies[icon]}</svg>'


def parse_icon_set(icons: dict, metadata: dict, chars: dict) -> IconSet:
    """Read Iconify's icons.json, metadata.json and chars.json; hidden icons and aliases fall away.

    An icon's own left, top, width and height come before the set's (defaults 0, 0, 16, 16).
    """
    sides = (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    visible = {name: icon for name, icon in icons["icons"].items() if not icon.get("hidden")}
    boxes = {
        name: tuple(icon.get(side, icons.get(side, default)) for side, default in sides)
        for name, icon in visible.items()
    }
    categories = {}
    for category, members in metadata.get("categories", {}).items():
        for name in members:
            categories.setdefault(name, category)
    people = frozenset(metadata.get("categories", {}).get(PEOPLE, ()))
    characters = {}
    for code, name in chars.items():
        characters.setdefault(name, code)
    bodies = {name: icon["body"] for name, icon in visible.items()}
    return IconSet(bodies, boxes, categories, people, characters)


def load_icon_sets(styles: Iterable[str] = ()) -> dict[str, IconSet]:
    """The four emoji sets by style, and further styles; about 3 s, most for fluent's 100 MB."""
    members = ("icons.json", "metadata.json", "chars.json")
    wanted = dict.fromkeys((*EMOJI_STYLES, *styles))
    sets = {style: parse_icon_set(*read_json(PACKAGES[style], *members)) for style in wanted}
    concepts = concepts_by_name(sets)
    for style in wanted.keys() & set(MATCHED_BY_NAME):
        sets[style] = with_known_ids(sets[style], concepts)
    return sets


def concepts_by_name(sets: dict[str, IconSet]) -> dict[str, str]:
    """Concepts of the four sets by their ids and by their characters' names in Unicode, squeezed.

    For example "alarmclock": "alarm-clock" (its id) and "aubergine": "eggplant" (U+1F346).
    """
    by_id, by_character = {}, {}
    for style in EMOJI_STYLES:
        for concept in sets[style].bodies:
            by_id.setdefault(_squeezed(concept), concept)
            code = _bare_code(sets[style].chars.get(concept, "-"))
            if "-" not in code:  # one character, which has a name
                name = _squeezed(unicodedata.name(chr(int(code, 16)), ""))
                by_character.setdefault(name, concept)
    return by_character | by_id


def with_known_ids(icons: IconSet, concepts: dict[str, str]) -> IconSet:
    """The set with its icons under the ids of the four sets, where they name the same character.

    An icon that bears the id of a concept comes before one that is matched by name.
    """
    known = set(concepts.values())
    old_ids = {name: name for name in icons.bodies if name in known}
    for name in icons.bodies:
        old_ids.setdefault(concepts.get(_squeezed(name), name), name)
    bodies = {concept: icons.bodies[name] for concept, name in old_ids.items()}
    boxes = {concept: icons.boxes[name] for concept, name in old_ids.items()}
    return replace(icons, bodies=bodies, boxes=boxes)


def _squeezed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def plain_text(text: str) -> str:
    """Lower-case ASCII: accents dropped, typographic quotes made plain, '&' written out."""
    for fancy, plain in (("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("&", "and")):
        text = text.replace(fancy, plain)
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return " ".join(folded.lower().split())


_COUNTRY_WITH_THE = re.compile(
    r"islands$|^united |republic$|territor|^(bahamas|gambia|maldives|netherlands|philippines"
    r"|seychelles|comoros)$"
)


def name_of_label(label: str) -> str:
    """A phrase for captions from a Unicode label: "flag: Japan" -> "flag of japan"."""
    name = plain_text(label)
    if name.startswith("regional indicator "):
        return name.replace("regional indicator", "letter")
    if name.endswith(" (blood type)"):
        return "blood type " + name.removesuffix(" (blood type)")
    head, colon, tail = name.partition(": ")
    if not colon:
        return name
    if head == "keycap":
        return f"keycap {tail}"
    *parts, last = tail.split(", ")
    if last == "facing right":
        with_parts = f" with {' and '.join(parts)}" if parts else ""
        return f"{head}{with_parts} facing right"
    if last == "bald":
        head, last = f"bald {head}", parts.pop() if parts else ""
    if head == "flag" and _COUNTRY_WITH_THE.search(last):
        last = f"the {last}"
    joined = "of" if head in ("flag", "kiss", "family", "couple with heart") else "with"
    listed = f"{', '.join(parts)} and {last}" if parts else last
    return f"{head} {joined} {listed}" if listed else head


class Names:
    """Names and keywords of emojibase, found by characters and, failing that, by the icon's id."""

    def __init__(self, rows: list[dict]):
        self.by_code, self.by_slug = {}, {}
        for row in rows:
            words = tuple(dict.fromkeys(plain_text(tag) for tag in row.get("tags", ())))
            for form in (row, *row.get("skins", ())):
                entry = (name_of_label(form["label"]), tuple(word for word in words if word))
                self.by_code[_bare_code(form["hexcode"])] = entry
                if not form["label"].endswith(("#", "*")):
                    self.by_slug.setdefault(_slug(form["label"]), entry)

    def find(self, concept: str, code: str | None) -> tuple[str, tuple[str, ...]]:
        """Name and keywords of an icon; the id with spaces and no keywords when unknown."""
        if code is not None and _bare_code(code) in self.by_code:
            return self.by_code[_bare_code(code)]
        if concept in self.by_slug:
            return self.by_slug[concept]
        return concept.replace("-", " "), ()


def _bare_code(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", plain_text(label).replace("'", "")).strip("-")


def list_drawings(sets: dict[str, IconSet], names: Names, folder: Path) -> list[Drawing]:
    """Every visible drawing of the sets, with `shared` and `held_out` decided by the four."""
    people = frozenset().union(*(sets[style].people for style in EMOJI_STYLES))
    fluent = sets["fluent"].bodies.keys() | sets["flat"].bodies.keys()
    shared = (sets["noto"].bodies.keys() & sets["twemoji"].bodies.keys() & fluent) - people
    known = set().union(*(sets[style].bodies for style in EMOJI_STYLES))
    codes, categories = {}, {}
    for style in ("flat", "noto", "twemoji"):
        codes = sets[style].chars | codes
        categories = sets[style].categories | categories
    drawings = []
    for style, icons in sets.items():
        family = FAMILY_OF_STYLE[style]
        for concept in icons.bodies:
            if concept not in known:
                continue  # an id of its own: nobody knows whether it is a concept of the others
            if style in ONE_COLOUR_STYLES and HUES & set(concept.split("-")):
                continue
            if f"{style}/{concept}" in UNTRUE:
                continue
            name, keywords = names.find(concept, icons.chars.get(concept) or codes.get(concept))
            own = {} if style in MORE_STYLES else icons.categories
            category = own.get(concept) or categories.get(concept, "")
            drawing = Drawing(
                id=f"{style}/{concept}",
                file_name=f"64/{style}/{concept}.png",
                concept=concept,
                name=name,
                keywords=keywords,
                style=style,
                family=family,
                category=PEOPLE if concept in people else category,
                shared=concept in shared,
                held_out=concept in shared and family in FAMILIES and is_held_out(concept, family),
                folder=folder,
            )
            drawings.append(drawing)
    return drawings


def select(drawings: list[Drawing], styles: Iterable[str], shared_only: bool, limit: int | None):
    """The drawings asked for, all styles of a concept together, in a fixed shuffled order."""
    wanted = set(styles)
    chosen = [d for d in drawings if d.style in wanted and (d.shared or not shared_only)]
    chosen.sort(key=lambda d: (sha256(d.concept.encode()).digest(), d.style))
    return chosen if limit is None else chosen[:limit]


def render(svg: str, size: int) -> bytes:
    """A PNG (RGBA, size x size) of an SVG, centred when it is not square."""
    import resvg_py

    sized = svg.replace("<svg ", f'<svg width="{size}" height="{size}" ', 1)
    return bytes(resvg_py.svg_to_bytes(svg_string=sized, skip_system_fonts=True))


def _render_to(job: tuple[str, str, int, Path]) -> tuple[str, str]:
    drawing_id, svg, size, path = job
    try:
        write_whole(path, render(svg, size))
    except (ValueError, OSError) as error:
        return drawing_id, str(error) or type(error).__name__
    return drawing_id, ""


def render_missing(
    jobs: Iterator[tuple[str, str, int, Path]], total: int, workers: int
) -> dict[str, str]:
    """Render (id, svg, size, path) jobs in processes; return {id: reason} of those that failed."""
    import multiprocessing

    from tqdm import tqdm

    failed = {}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        tqdm(total=total, unit="file", disable=None, desc="render") as progress,
    ):
        while batch := list(islice(jobs, 64 * workers)):
            for drawing_id, reason in pool.map(_render_to, batch, chunksize=8):
                if reason:
                    failed[drawing_id] = reason
                progress.update()
    return failed


def check_sizes(sizes: Iterable[int]) -> list[int]:
    """The sizes once each in rising order; ValueError outside 8 to 4096 pixels."""
    ordered = sorted(set(sizes))
    for size in ordered:
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"sizes: {size} is not between {MIN_SIZE} and {MAX_SIZE} pixels")
    return ordered


def render_folder(
    folder: Path, chosen: list[Drawing], svgs: dict[str, IconSet], sizes: list[int], workers: int
) -> dict:
    """Render what is missing of the chosen drawings into the folder and write metadata.jsonl.

    The rows stand before the files do, so that an interrupted run is taken up; a row without any
    file falls away at the end.
    """
    if not chosen:
        raise ValueError("styles, shared_only and limit leave no drawing to render")
    rows = {d.id: d for d in prepare_folder(folder)} | {d.id: d for d in chosen}
    save_drawings(folder, list(rows.values()))
    report = {"folder": str(folder), "drawings": len(chosen), "rendered": {}, "failed": {}}
    for size in sizes:
        present = files_present(folder, size)
        missing = [d for d in chosen if d.id not in present]
        for style in {d.style for d in missing}:
            (folder / str(size) / style).mkdir(parents=True, exist_ok=True)
        jobs = ((d.id, svgs[d.style].svg(d.concept), size, d.path(size)) for d in missing)
        failed = render_missing(jobs, len(missing), workers) if missing else {}
        report["rendered"][str(size)] = len(missing) - len(failed)
        report["failed"] |= {f"{size}/{name}": reason for name, reason in failed.items()}
    _drop_rows_without_files(folder, rows)
    return report


def _drop_rows_without_files(folder: Path, rows: dict[str, Drawing]) -> None:
    sizes = sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
    kept = {}
    for size in reversed(sizes):
        for name in files_present(folder, size) & rows.keys():
            kept[name] = replace(rows[name], file_name=f"{size}/{name}.png")
    save_drawings(folder, list(kept.values()))


def make_emoji(
    folder: str | os.PathLike,
    sizes: Iterable[int] = (64,),
    styles: Iterable[str] = EMOJI_STYLES,
    limit: int | None = None,
    shared_only: bool = False,
    workers: int | None = None,
) -> dict:
    """Fetch the emoji sets and render those that the folder lacks; return a report.

    Args:
        folder: where {size}/{style}/{concept}.png and metadata.jsonl are put.
        sizes: pixels of a side, each 8 to 4096.
        styles: of EMOJI_STYLES and MORE_STYLES.
        limit: at most this many drawings, all styles of a concept before the next concept.
        shared_only: only concepts that all three families draw, People & Body left out.
        workers: processes; the machine's cores when None.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: as the arguments, npm or its package fail.
    """
    styles = list(styles)
    for style in styles:
        if style not in (*EMOJI_STYLES, *MORE_STYLES):
            known = ", ".join((*EMOJI_STYLES, *MORE_STYLES))
            raise ValueError(f"styles: {style!r} is unknown; use {known}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    sizes, folder = check_sizes(sizes), Path(folder)
    prepare_folder(folder)
    sets = load_icon_sets(styles)
    names = Names(read_json(PACKAGES["names"], "en/data.json")[0])
    chosen = select(list_drawings(sets, names, folder), styles, shared_only, limit)
    return render_folder(folder, chosen, sets, sizes, workers or os.cpu_count() or 1)
