"""PNG files that carry how they were made.

Three iTXt chunks stand before the pixels:

- "parameters": the text that picture viewers read, a convention of the AUTOMATIC1111 web UI. It is
  for people; a prompt is flattened to one line in it, so that no part of a prompt reads as a field.
- "unclip": our record as JSON. It alone is read back, and gives every prompt unchanged.
- "XML:com.adobe.xmp": the IPTC mark that a trained algorithm made the picture.

A record is a dict that JSON can hold. These keys have a fixed type, checked when writing and when
reading; each may be left out or None, and other keys pass through:

    prompt, negative_prompt, model, model_hash: str
    seed: int                     seeds: list of int
    stages: list of str, or {stage: {...}}
    steps: int, str or {stage: int or str}
    guidance: number or {stage: number}
    sampler: str or {stage: str}
    size: int or [width, height]  versions: {name: str}

Where a value is given for each stage, viewers are shown the decoder's. A path in a record is
reduced to its last part, unless it stands in a prompt, so that no file tells of a home folder.
"""

import io
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip_sample.writing import write_whole

__all__ = ["encode_png", "parameters_text", "read_png", "save_png"]

KEYWORD = "unclip"
MAX_RECORD_BYTES = 8 << 20
MAX_CHUNKS = 1 << 16
MAX_STRINGS = 1 << 16
MAX_CHARACTERS_OUTSIDE_STRINGS = 1 << 20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""

# Words of the user's, in which nothing is a path.
USER_TEXT = re.compile(r"(.*_)?(prompt|caption|text)s?|text_diff", re.IGNORECASE)
PATH = re.compile(r"file:|[A-Za-z]:[\\/]|[\\/]|~[^\\/\s]*[\\/]|\.{1,2}[\\/]|.*[\\/]\.\.[\\/]")
FIELD_NAME = re.compile(r"(negative prompt|steps)\s*:", re.IGNORECASE)
JSON_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)
NOT_PRINTABLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")


# Writing


def save_png(
    image: Image.Image,
    path: str | os.PathLike[str],
    record: Mapping[str, Any] | None,
    overwrite: bool = False,
) -> None:
    """Writes a picture and how it was made, whole or not at all.

    image: any mode that PNG holds. path: ends in ".png", in a folder that exists. record: see the
    top of this file; None writes no text at all. Raises FileExistsError if path exists and
    overwrite is False, another OSError if the folder cannot be written, ValueError for a bad image,
    path or record.
    """
    path = Path(path)
    if path.suffix.lower() != ".png" or "\0" in str(path):
        raise ValueError(f"path: give a name that ends in .png, not {path.name!r}")
    if os.path.lexists(path) and not overwrite:
        raise _exists(path)
    content = encode_png(image, record)
    try:
        write_whole(path, content, overwrite)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"path: cannot write {str(path)!r} ({reason}); choose a folder you can write to"
        raise type(error)(message) from error


def encode_png(image: Image.Image, record: Mapping[str, Any] | None) -> bytes:
    """The bytes of a PNG file that carries record, or no text if record is None.

    Raises ValueError if image is no picture that PNG holds, or record breaks the rules above.
    """
    if not isinstance(image, Image.Image) or image.mode not in MODES:
        raise ValueError(f"image: give a Pillow image of a mode among {', '.join(MODES)}")
    text = None if record is None else _text_chunks(record, image.size)
    bare = image.copy()
    bare.info = {key: value for key, value in image.info.items() if key == "transparency"}
    with io.BytesIO() as file:
        bare.save(file, "PNG", pnginfo=text, compress_level=4)  # as small as 6 and faster
        return file.getvalue()


def parameters_text(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    """The text that viewers read: the prompts, a line each, then a line of settings.

    record: as checked by encode_png. size: width and height of the picture, pixels.
    """
    prompt, negative = (_one_line(record.get(key)) for key in ("prompt", "negative_prompt"))
    steps = _of_decoder(record, "steps")
    if isinstance(steps, str):  # "fast27", "ddim15": viewers want a number
        steps = (re.findall(r"\d+", steps) or [None])[-1]
    guidance = _of_decoder(record, "guidance")
    version = (record.get("versions") or {}).get("unclip")
    seed = record.get("seed")
    settings = {
        "Steps": steps,
        "Sampler": _of_decoder(record, "sampler"),
        "CFG scale": None if guidance is None else float(guidance),
        "Seed": (record.get("seeds") or [None])[0] if seed is None else seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": record.get("model_hash"),
        "Model": record.get("model"),
        "Version": None if version is None else f"unclip {version}",
    }
    shown = (f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None)
    lines = [prompt, negative and f"Negative prompt: {negative}", ", ".join(shown)]
    return "\n".join(line for line in lines if line)


def _text_chunks(record: Mapping[str, Any], size: tuple[int, int]) -> PngInfo:
    record = _portable_record(record)
    _check_types(record, "record")
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: only an escape can hold it
        text = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"record: give what JSON can hold ({_one_line(str(error))})") from None
    if len(text.encode()) > MAX_RECORD_BYTES:
        raise ValueError(f"record: shorten the prompt; over {MAX_RECORD_BYTES >> 20} MiB of JSON")
    if _is_intricate(text):
        raise ValueError("record: too many values; leave some out")
    # Uncompressed: readers refuse compressed text that opens to more than a mebibyte.
    info = PngInfo()
    info.add_itxt("parameters", parameters_text(record, size))
    info.add_itxt(KEYWORD, text)
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return info


def _portable_record(record: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError(f"record: give a dict or None, not {type(record).__name__}")
    try:
        return _portable(record, user_text=False)
    except RecursionError:
        raise ValueError("record: nested too deeply, or within itself") from None


def _portable(value: Any, user_text: bool) -> Any:
    """A copy in which paths are reduced to their last part."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("record: give strings as keys")
        return {
            _last_part(key): _portable(item, user_text or bool(USER_TEXT.fullmatch(key)))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_portable(item, user_text) for item in value]
    if isinstance(value, os.PathLike):
        return PureWindowsPath(os.fspath(value)).name
    return _last_part(value) if isinstance(value, str) and not user_text else value


def _last_part(text: str) -> str:
    """The name alone if text is a path, else text with no mention of the home folder."""
    if PATH.match(text):
        return PureWindowsPath(text).name  # splits at both kinds of slash
    home = os.path.expanduser("~").rstrip("/\\")
    return text.replace(home, "~") if home not in ("", "~") else text


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"path: {str(path)!r} exists; name another file or allow overwriting")


def _one_line(text: str | None) -> str:
    """Text without line breaks, control characters or anything that reads as a field."""
    flat = NOT_PRINTABLE.sub(" ", text or "").strip()
    return FIELD_NAME.sub(r"\1 :", flat).encode("utf-8", "replace").decode()


def _quoted(value: Any) -> str:
    text = _one_line(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r'[,:"]', text) else text


def _of_decoder(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    return value.get("decoder") if isinstance(value, Mapping) else value


# Reading


def read_png(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads back the record that save_png wrote, from a file that nobody need trust.

    Only the "unclip" chunk is read; the pixels and all other text are skipped unseen. Raises
    FileNotFoundError, or ValueError in one line if there is no record or it breaks the rules.
    """
    path = Path(path)
    name = f"path: {str(path)!r}"
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist; give a PNG file")
    if not path.is_file():
        raise ValueError(f"{name} is not a file; give a PNG file")
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise ValueError(f"{name} is not a PNG file")
        found = _record_chunk(file, name)
    if found is None:
        raise ValueError(f"{name} does not say how it was made; give a file that unclip wrote")
    try:
        text = _itxt_text(found, name).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name} has a damaged record: its text is not UTF-8") from None
    if _is_intricate(text):
        raise ValueError(f"{name} has a record of too many values")
    try:
        record = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} has a damaged record: its {KEYWORD} text is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError(f"{name} has a damaged record: its JSON is no object")
    _check_types(record, name)
    return record


def _record_chunk(file: BinaryIO, name: str) -> bytes | None:
    """The content of the only iTXt chunk with our keyword, after the keyword; None if absent."""
    keyword = KEYWORD.encode() + b"\0"
    found = None
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise ValueError(f"{name} is cut short")
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return found
        start = file.read(min(length, len(keyword))) if kind == b"iTXt" else b""
        if start != keyword:
            file.seek(length - len(start) + 4, os.SEEK_CUR)
            continue
        if found is not None:
            raise ValueError(f"{name} has more than one record")
        if length > MAX_RECORD_BYTES + 64:
            raise ValueError(f"{name} has a record of over {MAX_RECORD_BYTES >> 20} MiB")
        found = file.read(length - len(keyword))
        if file.read(4) != struct.pack(">I", zlib.crc32(kind + start + found)):
            raise ValueError(f"{name} has a damaged record: its checksum is wrong")
    raise ValueError(f"{name} has over {MAX_CHUNKS} chunks")


def _itxt_text(content: bytes, name: str) -> bytes:
    """Text after flag, method, language, 0, translated keyword, 0 (PNG specification, iTXt)."""
    compressed, text = content[:1], content[2:].split(b"\0", 2)[-1]
    if compressed == b"\1":
        opened = zlib.decompressobj()
        try:
            text = opened.decompress(text, MAX_RECORD_BYTES + 1)
        except zlib.error:
            raise ValueError(f"{name} has a damaged record: it does not decompress") from None
        if not opened.eof:
            raise ValueError(f"{name} has a record of over {MAX_RECORD_BYTES >> 20} MiB")
    return text


def _is_intricate(text: str) -> bool:
    """Whether JSON text has so many values that parsing it would take long."""
    outside = len(text)  # characters outside of strings
    for number, string in enumerate(JSON_STRING.finditer(text)):
        outside -= string.end() - string.start()
        if number == MAX_STRINGS:
            return True
    return outside > MAX_CHARACTERS_OUTSIDE_STRINGS


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


# Types of the known keys


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _either(*checks: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: any(check(value) for check in checks)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


TYPES: dict[str, Callable[[Any], bool]] = {
    "prompt": _is_text,
    "negative_prompt": _is_text,
    "model": _is_text,
    "model_hash": _is_text,
    "seed": _is_whole,
    "seeds": _list_of(_is_whole),
    "stages": _either(_list_of(_is_text), _dict_of(lambda value: isinstance(value, dict))),
    "steps": _either(_is_whole, _is_text, _dict_of(_or_none(_either(_is_whole, _is_text)))),
    "guidance": _either(_is_number, _dict_of(_or_none(_is_number))),
    "sampler": _either(_is_text, _dict_of(_or_none(_is_text))),
    "size": _either(_is_whole, lambda value: _list_of(_is_whole)(value) and len(value) == 2),
    "versions": _dict_of(_is_text),
}


def _check_types(record: Mapping[str, Any], name: str) -> None:
    for key, check in TYPES.items():
        if not _or_none(check)(record.get(key)):
            raise ValueError(f"{name}: the record's {key!r} has the wrong type")
