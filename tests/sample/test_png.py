"""PNG files that carry how they were made: round trips, hostile files, privacy, safe writing."""

import errno
import functools
import json
import os
import random
import stat
import struct
import time
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unclip_sample import png
from unclip_sample.png import encode_png, parameters_text, read_png, save_png

RECORD = {
    "prompt": "a red apple, noto style",
    "negative_prompt": "blurry",
    "stages": ["prior", "decoder", "upsampler_256", "upsampler_1024"],
    "steps": {"prior": 25, "decoder": 25, "upsampler_256": "fast27", "upsampler_1024": "ddim15"},
    "guidance": {"prior": 1.0, "decoder": 3},
    "sampler": {"prior": "ddpm", "decoder": "dpm++"},
    "seed": 42,
    "seeds": [42],
    "size": 1024,
    "model": "emoji",
    "model_hash": "9f86d081",
    "versions": {"unclip": "0.1.0", "torch": "2.13.0"},
}

INJECTION = "\nSteps: 1, Seed: 9"
PROMPTS = [
    "",
    " leading and trailing spaces \n",
    f"a cat{INJECTION}",
    f"a cat\r{INJECTION}\u2028Steps: 1, Sampler: Euler, CFG scale: 1, Seed: 9\x85Seed: 8",
    "a cat\nNegative prompt: everything\nSteps: 1, Seed: 9, Size: 1x1",
    "Negative prompt: a cat",
    "Steps: 1, Sampler: Euler, CFG scale: 7, Seed: 9, Size: 1x1",
    "negative PROMPT : x, steps : 3",
    "a \U0001f468\u200d\U0001f469\u200d\U0001f467 family and a \U0001f34e",
    "NUL \x00 and \x01\x1b[31m escapes",
    "a lone \ud800 surrogate",
    'quotes " and \\ slashes, commas: and colons',
    "</x:xmpmeta><?xpacket end='w'?>",
    "\u202eright to left \u0645",
    "/home/alice/prompts.txt",
    "~/cats and ../dogs",
]


def picture(mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new(mode, size, 1 if mode in ("1", "L", "I;16", "P") else None)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def itxt(text: bytes, keyword: bytes = b"unclip", compressed: bool = False) -> bytes:
    flag = b"\1\0" if compressed else b"\0\0"
    content = zlib.compress(text) if compressed else text
    return chunk(b"iTXt", keyword + b"\0" + flag + b"\0\0" + content)


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, position = [], 8
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        found.append((kind, content[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def hostile(path: Path, *extra: bytes) -> Path:
    """A valid picture with chunks put in after its header."""
    content = encode_png(picture(), None)
    path.write_bytes(content[:33] + b"".join(extra) + content[33:])
    return path


def viewer_fields(text: str) -> tuple[str, str, dict[str, str]]:
    """What a viewer takes from "parameters": prompt, negative prompt and the settings."""
    *lines, settings = text.split("\n")
    negative = [line for line in lines if line.startswith("Negative prompt: ")]
    prompt = [line for line in lines if not line.startswith("Negative prompt: ")]
    fields = dict(part.split(": ", 1) for part in settings.split(", "))
    return "\n".join(prompt), "\n".join(negative), fields


# Round trips


def test_round_trip_and_what_viewers_read(tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    save_png(picture(), path, RECORD)
    assert read_png(path) == RECORD
    with Image.open(path) as opened:
        assert opened.tobytes() == picture().tobytes()
        assert opened.text["parameters"] == (
            "a red apple, noto style\nNegative prompt: blurry\n"
            "Steps: 25, Sampler: dpm++, CFG scale: 3.0, Seed: 42, Size: 8x6, "
            "Model hash: 9f86d081, Model: emoji, Version: unclip 0.1.0"
        )
        assert json.loads(opened.text["unclip"]) == RECORD
        packet = ElementTree.fromstring(opened.text["XML:com.adobe.xmp"])
    description = packet.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType") == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_come_back_unchanged_and_cannot_inject(prompt: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    record = RECORD | {"prompt": prompt, "negative_prompt": prompt, "interpolate_prompts": [prompt]}
    save_png(picture(), path, record)
    assert read_png(path) == record
    with Image.open(path) as opened:
        text = opened.text["parameters"]
    _, negative, fields = viewer_fields(text)
    assert len(text.splitlines()) == (3 if prompt else 1)
    assert text.count("Steps:") == 1 and text.count("Negative prompt:") == (1 if prompt else 0)
    assert (fields["Steps"], fields["Seed"], fields["Size"]) == ("25", "42", "8x6")
    assert bool(negative) == bool(prompt) and "\0" not in text


def test_random_prompts_come_back_unchanged(tmp_path: Path) -> None:
    rng = random.Random(0)
    pieces = [
        INJECTION,
        "\0",
        "\n",
        "\r",
        "Steps:",
        "Negative prompt:",
        "\U0001f34e",
        "\ud83d",
        "a",
    ]
    for number in range(200):
        prompt = "".join(
            rng.choice([*pieces, chr(rng.randrange(0x110000))]) for _ in range(rng.randrange(40))
        )
        save_png(picture(), tmp_path / f"{number}.png", {"prompt": prompt, "seed": number})
        assert read_png(tmp_path / f"{number}.png") == {"prompt": prompt, "seed": number}


@pytest.mark.parametrize("letter", ["x", "\0", "\U0001f34e", "\n", "\ud800", "\\", '"', "["])
def test_a_prompt_of_a_million_letters(letter: str, tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    save_png(picture(), path, {"prompt": letter * 1_000_000})
    assert read_png(path) == {"prompt": letter * 1_000_000}
    with Image.open(path) as opened:  # other readers are not put off
        opened.load()


def test_a_record_too_long_to_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^record: shorten the prompt"):
        save_png(picture(), tmp_path / "long.png", {"prompt": "x" * (8 << 20)})
    assert not list(tmp_path.iterdir())


def test_a_record_of_too_many_values_is_not_written() -> None:
    for values in ([""] * 100_000, [0] * 400_000):
        with pytest.raises(ValueError, match="^record: too many values"):
            encode_png(picture(), {"values": values})


def test_parameters_text_with_little_or_odd_to_say() -> None:
    assert parameters_text({}, (64, 32)) == "Size: 64x32"
    text = parameters_text({"seeds": [7], "steps": "fast27", "guidance": 4}, (64, 64))
    assert text == "Steps: 27, CFG scale: 4.0, Seed: 7, Size: 64x64"
    text = parameters_text({"seed": 0, "seeds": [], "steps": "default", "guidance": {}}, (1, 1))
    assert text == "Seed: 0, Size: 1x1"
    text = parameters_text({"model": "mine, Seed: 9\nSteps: 1"}, (1, 1))
    assert text == 'Size: 1x1, Model: "mine, Seed: 9 Steps : 1"'


def test_none_and_unknown_keys_pass_through(tmp_path: Path) -> None:
    record = {key: None for key in png.TYPES} | {"mode": "variation", "theta": [0.0, 0.5], "x": {}}
    save_png(picture(), tmp_path / "picture.png", record)
    assert read_png(tmp_path / "picture.png") == record


def test_reads_a_record_that_another_tool_compressed_or_moved(tmp_path: Path) -> None:
    text = json.dumps(RECORD).encode()
    assert read_png(hostile(tmp_path / "a.png", itxt(text, compressed=True))) == RECORD
    content = encode_png(picture(), None)
    (tmp_path / "b.png").write_bytes(content[:-12] + itxt(text) + content[-12:])
    assert read_png(tmp_path / "b.png") == RECORD


@pytest.mark.parametrize("mode", png.MODES)
def test_every_mode_that_png_holds(mode: str, tmp_path: Path) -> None:
    save_png(picture(mode), tmp_path / "picture.PNG", RECORD)
    with Image.open(tmp_path / "picture.PNG") as opened:
        assert opened.tobytes() == picture(mode).tobytes()


# Privacy


def test_no_record_leaves_no_text(tmp_path: Path) -> None:
    source = PngInfo()
    source.add_text("Comment", "secret")
    source.add_itxt("XML:com.adobe.xmp", "secret")
    exif = Image.Exif()
    exif[0x010E] = "secret"
    picture().save(
        tmp_path / "source.png", pnginfo=source, exif=exif, icc_profile=b"secret", dpi=(72, 72)
    )
    with Image.open(tmp_path / "source.png") as opened:
        save_png(opened, tmp_path / "bare.png", None)
        save_png(opened, tmp_path / "told.png", RECORD)
    assert b"secret" in (tmp_path / "source.png").read_bytes()
    bare, told = (chunks((tmp_path / name).read_bytes()) for name in ("bare.png", "told.png"))
    assert {kind for kind, _ in bare} == {b"IHDR", b"IDAT", b"IEND"}
    texts = [content.split(b"\0")[0] for kind, content in told if kind == b"iTXt"]
    assert sorted(texts) == [b"XML:com.adobe.xmp", b"parameters", b"unclip"]
    assert {kind for kind, _ in told} == {b"IHDR", b"iTXt", b"IDAT", b"IEND"}
    assert not any(b"secret" in content for _, content in told)


def test_transparency_of_a_palette_is_no_text() -> None:
    image = picture("P")
    image.info["transparency"] = 0
    assert {kind for kind, _ in chunks(encode_png(image, None))} >= {b"PLTE", b"tRNS"}


def test_no_home_folder_user_or_host_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "alice"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    record = RECORD | {
        "model": str(home / "models" / "mine"),
        "image": home / "cat.png",
        "images": [f"file://{home}/dog.png", "~/bird.png", "~alice/cow.png", "../alice/pig.png"],
        "command": f"unclip-sample --model={home}/models/mine",
        "parts": {str(home / "decoder"): "ab12", "text_encoder": f"{home}/clip/"},
        "windows": ["C:\\Users\\alice\\hen.png", "\\\\alice-pc\\share\\ox.png"],
        "hub": "owner/name",
    }
    path = home / "picture.png"
    save_png(picture(), path, record)
    content = path.read_bytes()
    assert b"alice" not in content and str(tmp_path).encode() not in content
    assert read_png(path) == RECORD | {
        "model": "mine",
        "image": "cat.png",
        "images": ["dog.png", "bird.png", "cow.png", "pig.png"],
        "command": "unclip-sample --model=~/models/mine",
        "parts": {"decoder": "ab12", "text_encoder": "clip"},
        "windows": ["hen.png", "ox.png"],
        "hub": "owner/name",
    }
    assert not {b"tIME", b"eXIf", b"tEXt", b"zTXt"} & {kind for kind, _ in chunks(content)}


# Hostile files


HOSTILE_CHUNKS = {
    "no text": (lambda: b"", "does not say how it was made"),
    "tEXt": (lambda: chunk(b"tEXt", b"unclip\0{}"), "does not say how it was made"),
    "zTXt bomb": (lambda: chunk(b"zTXt", b"unclip\0\0" + bomb()), "does not say"),
    "foreign zTXt bomb": (lambda: chunk(b"zTXt", b"x\0\0" + bomb()), "does not say"),
    "foreign 10 MB": (lambda: itxt(b"a" * (10 << 20), b"parameters"), "does not say"),
    "10 MB": (lambda: itxt(b"a" * (10 << 20)), "over 8 MiB"),
    "iTXt bomb": (lambda: chunk(b"iTXt", b"unclip\0\1\0\0\0" + bomb()), "over 8 MiB"),
    "junk": (lambda: chunk(b"iTXt", b"unclip\0\1\0\0\0junk"), "does not decompress"),
    "empty": (lambda: chunk(b"iTXt", b"unclip\0"), "not JSON"),
    "two": (lambda: itxt(b"{}") * 2, "more than one record"),
    "checksum": (lambda: itxt(b"{}")[:-1] + b"!", "checksum"),
    "long IDAT": (lambda: struct.pack(">I4s", 2**31, b"IDAT"), "cut short"),
    "long iTXt": (lambda: struct.pack(">I4s", 2**32 - 1, b"iTXt") + b"unclip\0", "over 8 MiB"),
    "many chunks": (lambda: chunk(b"teXt", b"") * 200_000, "over 65536 chunks"),
    "deep": (lambda: itxt(b"[" * (1 << 20)), "not JSON"),
    "deep object": (lambda: itxt(b'{"a":' * (1 << 15)), "not JSON"),
    "wide": (lambda: itxt(b"[" + b"[]," * 2_700_000 + b"0]"), "too many values"),
    "many strings": (lambda: itxt(b"[" + b'"",' * 2_700_000 + b"0]"), "too many values"),
    "fairly wide": (lambda: itxt(b"[" + b"[]," * 340_000 + b"0]"), "no object"),
    "unclosed": (lambda: itxt(b'"' + b'\\"' * 4_000_000), "not JSON"),
    "closed late": (lambda: itxt(b'"' + b"\\u0000" * 1_300_000 + b'"'), "no object"),
}
HOSTILE_TEXTS = {
    b"a prompt, not JSON": "not JSON",
    b"\xff\xfe{}": "not UTF-8",
    b'{"seed":' + b"9" * 5_000 + b"}": "not JSON",
    b'{"guidance": NaN}': "not JSON",
    b'{"guidance": -Infinity}': "not JSON",
    b"[]": "no object",
    b"null": "no object",
    b'{"guidance": 1e999}': "'guidance' has the wrong type",
    b'{"prompt": ["a"]}': "'prompt' has the wrong type",
    b'{"seed": "42"}': "'seed' has the wrong type",
    b'{"seed": true}': "'seed' has the wrong type",
    b'{"seed": 42.0}': "'seed' has the wrong type",
    b'{"seed": 99999999999999999999}': "'seed' has the wrong type",
    b'{"seeds": [1, null]}': "'seeds' has the wrong type",
    b'{"steps": [25]}': "'steps' has the wrong type",
    b'{"steps": {"decoder": 2.5}}': "'steps' has the wrong type",
    b'{"stages": {"decoder": 1}}': "'stages' has the wrong type",
    b'{"sampler": {"decoder": {}}}': "'sampler' has the wrong type",
    b'{"size": [1, 2, 3]}': "'size' has the wrong type",
    b'{"versions": {"unclip": 1}}': "'versions' has the wrong type",
}


@functools.cache
def bomb() -> bytes:
    """A quarter of a megabyte that opens to 256 MiB."""
    press = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join(press.compress(block) for _ in range(256)) + press.flush()


@pytest.mark.parametrize("case", HOSTILE_CHUNKS)
def test_hostile_chunks_are_refused_in_one_line_and_soon(case: str, tmp_path: Path) -> None:
    make, message = HOSTILE_CHUNKS[case]
    path = hostile(tmp_path / "hostile.png", make())
    seconds = []
    for _ in range(3):  # the best counts: another process on the same core makes all slower
        start = time.process_time()
        with pytest.raises(ValueError, match=message) as raised:
            read_png(path)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
    assert "\n" not in str(raised.value) and str(raised.value).startswith("path: ")


@pytest.mark.parametrize(("text", "message"), HOSTILE_TEXTS.items(), ids=range(len(HOSTILE_TEXTS)))
def test_hostile_texts_are_refused_in_one_line(text: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_png(hostile(tmp_path / "hostile.png", itxt(text)))
    assert "\n" not in str(raised.value) and str(raised.value).startswith("path: ")


@pytest.mark.parametrize("length", [0, 7, 8, 20, 40, -13])
def test_broken_files(length: int, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(encode_png(picture(), RECORD)[:length])
    with pytest.raises(ValueError, match="is not a PNG file|is cut short") as raised:
        read_png(path)
    assert "\n" not in str(raised.value)


def test_paths_that_are_no_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; give a PNG file"):
        read_png(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is not a file"):
        read_png(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="is not a file"):
        read_png(tmp_path / "pipe.png")
    picture().save(tmp_path / "photo.png", "JPEG")
    with pytest.raises(ValueError, match="is not a PNG file"):
        read_png(tmp_path / "photo.png")


# Bad arguments


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("a prompt", "give a dict or None"),
        ({1: "a"}, "give strings as keys"),
        ({"x": {2: "a"}}, "give strings as keys"),
        ({"x": object()}, "give what JSON can hold"),
        ({"x": {1, 2}}, "give what JSON can hold"),
        ({"x": float("nan")}, "give what JSON can hold"),
        ({"seed": "42"}, "'seed' has the wrong type"),
        ({"guidance": float("inf")}, "'guidance' has the wrong type"),
    ],
)
def test_bad_records(record: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^record: .*{message}|^record: {message}"):
        save_png(picture(), tmp_path / "picture.png", record)
    assert not list(tmp_path.iterdir())


def test_a_record_within_itself_is_refused() -> None:
    record: dict = {}
    record["x"] = [record]
    with pytest.raises(ValueError, match="^record: nested too deeply"):
        encode_png(picture(), record)


def test_bad_images_and_names(tmp_path: Path) -> None:
    for image in (picture("CMYK"), b"pixels"):
        with pytest.raises(ValueError, match="^image: "):
            save_png(image, tmp_path / "picture.png", RECORD)
    for name in ("picture.jpg", "picture", "pic\0ture.png"):
        with pytest.raises(ValueError, match="^path: give a name that ends in .png"):
            save_png(picture(), tmp_path / name, RECORD)


# Safe writing


def test_refuses_to_overwrite_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    save_png(picture(), path, {"prompt": "first"})
    with pytest.raises(FileExistsError, match=r"picture\.png' exists; name another file") as raised:
        save_png(picture(), path, {"prompt": "second"})
    assert raised.value.args == (str(raised.value),)
    assert read_png(path) == {"prompt": "first"}
    save_png(picture(), path, {"prompt": "second"}, overwrite=True)
    assert read_png(path) == {"prompt": "second"}
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        save_png(picture(), tmp_path / "dangling.png", None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dangling.png", "picture.png"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_while_encoding_is_kept(
    hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, encode = tmp_path / "picture.png", png.encode_png

    def encode_slowly(*arguments) -> bytes:
        path.write_bytes(b"another process was faster")
        return encode(*arguments)

    if not hard_links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(png, "encode_png", encode_slowly)
    with pytest.raises(FileExistsError, match="exists; name another file"):
        save_png(picture(), path, RECORD)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"another process was faster"]


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    save_png(picture(), tmp_path / "picture.png", RECORD)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    assert read_png(tmp_path / "picture.png") == RECORD


def refuse(number: int):
    def refusing(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refusing


@pytest.mark.parametrize(
    ("call", "number", "kind"),
    [
        ("open", errno.EACCES, PermissionError),
        ("open", errno.EROFS, OSError),
        ("fsync", errno.ENOSPC, OSError),
        ("replace", errno.EACCES, PermissionError),
    ],
)
def test_a_failed_write_leaves_what_was_there(
    call: str, number: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    save_png(picture(), path, {"prompt": "first"})
    monkeypatch.setattr(os, call, refuse(number))
    with pytest.raises(kind, match=f"^path: cannot write .*{os.strerror(number)}") as raised:
        save_png(picture(), path, {"prompt": "second"}, overwrite=True)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    assert read_png(path) == {"prompt": "first"}
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="^path: cannot write .*No such file"):
        save_png(picture(), tmp_path / "none" / "picture.png", RECORD)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="^path: cannot write .*Not a directory"):
        save_png(picture(), tmp_path / "file" / "picture.png", RECORD)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match="^path: cannot write "):
        save_png(picture(), tmp_path / "folder.png", RECORD, overwrite=True)
    with pytest.raises(OSError, match="^path: cannot write "):
        save_png(picture(), tmp_path / f"{'x' * 300}.png", RECORD)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]


def test_the_file_has_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_png(picture(), tmp_path / "picture.png", None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "picture.png").stat().st_mode) == 0o640
