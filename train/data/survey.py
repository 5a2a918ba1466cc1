"""What a source of captioned pictures holds: sizes, captions, what is broken, what stands twice."""

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import numpy as np
from PIL import Image

from unclip.pictures import MAX_PIXELS, PictureError, decode, flatten, open_picture, upright

from .framing import open_reduced
from .sources.records import HARMLESS, BadSample, Fault, Source

HASH_SIDE = 8  # rows of the perceptual hash, and bits of each
NEAR_BITS = 5  # that near duplicates may differ in; different pictures differ in 32 on average
NEAR_LEVELS = 10  # mean difference of their small colour pictures, of 255
BANDS = (0, 10, 21, 32, 42, 53, 64)  # six: near ones, which differ in five bits, share one
NEIGHBOURS = 32  # compared within a band
MAX_EXAMPLES = 5
SIDES = (64, 256, 1024)  # of the stages
SHEET_SIDE = 256


@dataclass(frozen=True)
class Seen:
    """What one sample is like."""

    name: str
    captions: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    form: str = ""
    digest: bytes = b""  # of the file
    hash: int = 0  # 64 bits: whether brightness rises from each cell to the next (dHash)
    colours: bytes = b""  # 4 x 4 x RGB
    reason: str = ""  # why it cannot be used


def survey_source(
    source: Source,
    max_pixels: int = MAX_PIXELS,
    clip: str | Path | None = None,
    limit: int | None = None,
    min_side: int = 0,
) -> tuple[dict, dict[int, Fault]]:
    """Look at every sample; return what `unclip-data check` reports, and the unusable by number.

    Args:
        source: the pictures.
        max_pixels: of a picture.
        clip: folder of the CLIP whose tokens are counted; words are, when None.
        limit: look at the first so many samples only.
        min_side: pixels of a picture's shorter side, below which it is to be left out.

    Raises:
        FileNotFoundError: when there is no tokenizer in clip.
    """
    count = min(len(source), limit or len(source))
    seen = list(look_at_all(source, range(count), max_pixels, min_side))
    good = [sample for sample in seen if not sample.reason]
    bad = {index: Fault(s.reason, s.name) for index, s in enumerate(seen) if s.reason}
    faults = [*source.faults, *bad.values()]
    report = {
        "samples": count + sum(fault.reason not in HARMLESS for fault in source.faults),
        "usable": len(good),
        "faults": group_faults(faults),
        "formats": dict(Counter(sample.form for sample in good).most_common()),
        "sizes": describe_sizes([sample.size for sample in good]),
        "captions": describe_captions([c for sample in good for c in sample.captions], clip),
        "duplicates": describe_duplicates(good),
    }
    return report, bad


def look_at_all(
    source: Source, indices: range, max_pixels: int, min_side: int = 0
) -> Iterator[Seen]:
    """Every sample in order; pictures are decoded by several threads."""
    threads = 1 if source.sequential else (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(indices), 256):  # so that results do not pile up
            part = indices[start : start + 256]
            yield from pool.map(lambda index: look_at(source, index, max_pixels, min_side), part)
            if sys.stderr.isatty():
                print(f"\r{part[-1] + 1} of {len(indices)}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def look_at(source: Source, index: int, max_pixels: int, min_side: int = 0) -> Seen:
    """Read a sample and decode its picture, a JPEG at an eighth of its size."""
    name = source.name(index)
    try:
        captions, content = source.captions(index), source.picture(index)
        picture = open_picture(content, max_pixels)
        size, form = picture.size, picture.format
        reduced = open_reduced(content, 8 * HASH_SIDE, max_pixels, min_side)
        small = flatten(upright(decode(reduced)))
    except BadSample as error:
        return Seen(name, reason=error.fault.reason)
    except PictureError as error:
        return Seen(name, reason=error.reason)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    colours = small.resize((4, 4), Image.Resampling.BOX).tobytes()
    return Seen(name, captions, size, form, digest, difference_hash(small), colours)


def difference_hash(picture: Image.Image) -> int:
    """64 bits: in a gray picture of 9 x 8, whether each pixel is brighter than the one before."""
    size = (HASH_SIDE + 1, HASH_SIDE)
    gray = np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX), dtype=np.int16)
    rises = gray[:, 1:] > gray[:, :-1] + 1  # by more than rounding
    return int.from_bytes(np.packbits(rises).tobytes(), "big")


def group_faults(faults: Iterable[Fault]) -> dict[str, dict]:
    """Counts and first examples by reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for fault in faults:
        groups[fault.reason].append(fault.name)
    return {
        reason: {"count": len(names), "examples": names[:MAX_EXAMPLES]}
        for reason, names in sorted(groups.items())
    }


def describe_sizes(sizes: Sequence[tuple[int, int]]) -> dict:
    """Shorter sides, and how many are too small for each stage."""
    if not sizes:
        return {}
    shorter = [min(size) for size in sizes]
    ratios = [max(size) / min(size) for size in sizes]
    return {
        "shorter_side": {"min": min(shorter), "median": median(shorter), "max": max(shorter)},
        "longer_to_shorter": {"median": round(median(ratios), 2), "max": round(max(ratios), 2)},
        "smaller_than": {str(side): sum(s < side for s in shorter) for side in SIDES},
        "megapixels": round(mean(w * h for w, h in sizes) / 1e6, 2),
    }


def describe_captions(captions: Sequence[str], clip: str | Path | None) -> dict:
    """Lengths, how many are cut, and how many say what another says."""
    if not captions:
        return {"count": 0}
    words = [len(caption.split()) for caption in captions]
    letters = [len(caption) for caption in captions]
    return {
        "count": len(captions),
        "repeated": len(captions) - len(set(captions)),
        "letters": {"min": min(letters), "mean": round(mean(letters), 1), "max": max(letters)},
        "words": {"min": min(words), "mean": round(mean(words), 1), "max": max(words)},
        "cut": count_cut(captions, words, clip),
    }


def count_cut(captions: Sequence[str], words: Sequence[int], clip: str | Path | None) -> dict:
    """How many captions do not fit into a CLIP's context.

    Without a CLIP, those of more than 75 words: a word is at least a token, and OpenAI's CLIP
    takes 77 with the two that begin and end a caption.
    """
    if clip is None:
        return {"tokens": 77, "captions": sum(count > 75 for count in words), "by": "words"}
    from transformers import CLIPTokenizer

    config = Path(clip) / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"--clip: no CLIP in {clip}: it has no config.json")
    context = json.loads(config.read_text())["text_config"].get("max_position_embeddings", 77)
    tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True)
    lengths = [len(ids) for ids in tokenizer(list(captions), verbose=False)["input_ids"]]
    return {
        "tokens": context,
        "captions": sum(length > context for length in lengths),
        "by": "tokens",
        "longest": max(lengths),
    }


def describe_duplicates(good: Sequence[Seen]) -> dict:
    """Files that are the same, and pictures that look the same."""
    same: dict[bytes, list[str]] = defaultdict(list)
    for sample in good:
        same[sample.digest].append(sample.name)
    exact = [names for names in same.values() if len(names) > 1]
    first_of_each = {sample.digest: sample for sample in reversed(good)}
    near = group_near(list(first_of_each.values())[::-1])
    return {
        "exact": sum(len(names) - 1 for names in exact),
        "exact_examples": [names[:3] for names in exact[:MAX_EXAMPLES]],
        "near": sum(len(names) - 1 for names in near),
        "near_examples": [names[:3] for names in near[:MAX_EXAMPLES]],
    }


def group_near(samples: Sequence[Seen]) -> list[list[str]]:
    """Groups of pictures whose hashes differ in at most 5 of 64 bits, and whose colours agree."""
    leader = list(range(len(samples)))

    def find(place: int) -> int:
        while leader[place] != place:
            place = leader[place] = leader[leader[place]]
        return place

    for one, other in near_pairs(samples):
        first, second = sorted((find(one), find(other)))
        leader[second] = first
    groups: dict[int, list[str]] = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[find(place)].append(sample.name)
    return [names for names in groups.values() if len(names) > 1]


def near_pairs(samples: Sequence[Seen]) -> Iterator[tuple[int, int]]:
    """Pairs of places; candidates share one of six bands of their hashes (pigeonhole)."""
    colours = [np.frombuffer(sample.colours, np.uint8).astype(np.int16) for sample in samples]
    for low, high in pairwise(BANDS):
        buckets: dict[int, list[int]] = defaultdict(list)
        for place, sample in enumerate(samples):
            buckets[sample.hash >> low & (1 << high - low) - 1].append(place)
        for places in buckets.values():
            places.sort(key=lambda place: samples[place].hash)
            for number, one in enumerate(places):
                for other in places[number + 1 : number + 1 + NEIGHBOURS]:
                    if (samples[one].hash ^ samples[other].hash).bit_count() > NEAR_BITS:
                        continue
                    if np.abs(colours[one] - colours[other]).mean() <= NEAR_LEVELS:
                        yield one, other


def report_lines(report: dict) -> list[str]:
    """The report in words."""
    lines = [f"{report['usable']} usable of {report['samples']} samples"]
    for reason, found in report["faults"].items():
        lines.append(f"fault: {reason}: {found['count']} ({', '.join(found['examples'])})")
    if report["usable"]:
        sizes, captions = report["sizes"], report["captions"]
        side, ratio, cut = sizes["shorter_side"], sizes["longer_to_shorter"], captions["cut"]
        small = ", ".join(f"{n} below {side}" for side, n in sizes["smaller_than"].items())
        lines += [
            "formats: " + ", ".join(f"{form} {n}" for form, n in report["formats"].items()),
            f"shorter side: {side['min']} to {side['max']} px, median {side['median']:g}; {small}",
            f"longer side: {ratio['median']} times the shorter, at most {ratio['max']}",
            f"captions: {captions['count']}, {captions['repeated']} said before; letters "
            f"{captions['letters']['min']} to {captions['letters']['max']}, words "
            f"{captions['words']['min']} to {captions['words']['max']} "
            f"(mean {captions['words']['mean']})",
            f"captions cut at {cut['tokens']} tokens: {cut['captions']} (by {cut['by']})",
        ]
    for kind in ("exact", "near"):
        groups = report["duplicates"][kind + "_examples"]
        examples = "; ".join(" = ".join(names) for names in groups)
        lines.append(
            f"{kind} duplicates: {report['duplicates'][kind]}"
            + (f" ({examples})" if examples else "")
        )
    return lines


def save_source_sheet(
    source: Source,
    path: str | Path,
    size: int | None,
    max_pixels: int,
    min_side: int = 0,
    count: int = 48,
) -> None:
    """Write a contact sheet of samples as training reads them, whole, with their captions."""
    from .check import draw_sheet
    from .pictures import PictureDataset

    limits = {"max_pixels": max_pixels, "min_side": min_side}
    dataset = PictureDataset(source, size or SHEET_SIDE, framing="pad", **limits)
    samples = [dataset[position] for position in range(min(count, len(dataset)))]
    draw_sheet(samples).save(path)
