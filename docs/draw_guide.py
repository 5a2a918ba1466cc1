"""Draw the pictures that docs/guide.md shows, by the same calls as its examples.

    python docs/draw_guide.py
    python docs/draw_guide.py --only interpolation text-diff --steps 50

Every picture is a sheet in docs/guide/, drawn at 64 pixels and enlarged so that one can see it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from unclip import PrincipalComponents, UnCLIPPipeline
from unclip.pipeline.arguments import check_pictures
from unclip_sample.frames import sheet

Rows = list[list[Image.Image]]  # of a sheet
THINGS = ("a red apple", "a smiling face", "a banana")  # as in the guide
NUM_COLOURS = 128  # of a sheet: the repository stays small
MAX_FILES = 400  # that principal components are found of


class Drawing:
    """The pipeline, what every call of it is given, and the pictures that the guide begins with."""

    def __init__(self, args: argparse.Namespace):
        self.pipe = UnCLIPPipeline.from_pretrained(args.model, device=args.device)
        self.settings = {"decoder_num_inference_steps": args.steps, "size": 64}
        self.pictures = Path(args.pictures)
        self.apple, self.face, self.banana = (
            self.pipe(thing, seeds=7, **self.settings).images[0] for thing in THINGS
        )

    def __call__(self, operation: Callable, *values: Any, **settings: Any) -> list[Image.Image]:
        """The pictures of an operation."""
        return operation(*values, **self.settings, **settings).images


def plot(draw: Drawing) -> Rows:
    """A caption by more and more guidance, by a row for each seed."""
    return [
        [draw(draw.pipe, "a rocket", guidance_scale=scale, seeds=seed)[0] for scale in (1, 2, 4, 8)]
        for seed in (1, 2)
    ]


def variations(draw: Drawing) -> Rows:
    """The picture, then variations, by a row for each eta; the last from fresh noise."""
    rows = []
    for eta in (0.3, 0.7, None):
        varied = draw(draw.pipe.vary, draw.apple, num_images=4, eta=eta, seeds=1)
        rows.append([draw.apple, *varied])
    return rows


def inversion(draw: Drawing) -> Rows:
    """Pictures, their noise, and what they are decoded to from it."""
    pictures = [draw.apple, draw.face, draw.banana]
    steps = draw.settings["decoder_num_inference_steps"]
    latents = draw.pipe.invert(pictures, decoder_num_inference_steps=steps)
    levels = ((latents.x_T / 6 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    noise = [Image.fromarray(x_T.permute(1, 2, 0).numpy()) for x_T in levels]
    again = draw(draw.pipe.decode, *latents, seeds=0)
    return [pictures, noise, again]


def interpolation(draw: Drawing) -> Rows:
    """Between pictures and a caption, with noise of their own and with fixed noise."""
    subjects = [draw.apple, draw.face]
    return [
        draw(draw.pipe.interpolate, subjects, num_frames=7, noise=noise, seeds=1)
        for noise in ("slerp", "fixed")
    ]


def text_diff(draw: Drawing) -> Rows:
    """A picture led to a text, and a caption led to another."""
    target = "a green apple"
    subjects = ((draw.apple, "a red apple"), (draw.apple, "a photo"), ("a red apple", None))
    return [
        draw(draw.pipe.text_diff, subject, target, base=base, num_frames=5, seeds=7)
        for subject, base in subjects
    ]


def mixing(draw: Drawing) -> Rows:
    """A picture and a text with weights from one alone to the other alone."""
    rows = []
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        subjects, weights = [draw.apple, "a smiling face"], [share, 1 - share]
        rows.append(draw(draw.pipe.mix, subjects, weights, num_images=2, seeds=1))
    return [list(column) for column in zip(*rows, strict=True)]


def projections(draw: Drawing) -> Rows:
    """The picture, then what is left of it with more and more principal components."""
    files = sorted(draw.pictures.glob("*.png"))
    files = files[:: max(1, len(files) // MAX_FILES)]
    pictures = [check_pictures(Image.open(file))[0] for file in files]
    components = PrincipalComponents.fit(draw.pipe.encode_images(pictures))
    kept = [count for count in (2, 5, 20, 80, 160) if count <= components.num_components]
    subjects = (draw.apple, draw.face)
    return [
        [subject, *draw(draw.pipe.project, subject, components, kept, seeds=1)]
        for subject in subjects
    ]


def ablations(draw: Drawing) -> Rows:
    """The caption alone, z_txt in place of z_img, and the prior's z_img, by row."""
    return [
        draw(draw.pipe.ablate, THINGS[0], condition, num_images=5, seeds=1)
        for condition in ("caption", "z_txt", "prior")
    ]


def clip_guidance(draw: Drawing) -> Rows:
    """The caption alone with more and more guidance by CLIP, by row."""
    settings = {"condition": "caption", "guidance_scale": 1.0, "num_images": 5, "seeds": 1}
    return [
        draw(draw.pipe.ablate, THINGS[0], clip_guidance_scale=scale, **settings)
        for scale in (0.0, 5.0, 20.0)
    ]


def inpainting(draw: Drawing) -> Rows:
    """The picture, what is kept of it, and what is painted there, by a row for each picture."""
    rows = []
    for picture, words in ((draw.apple, "a green apple"), (draw.face, "a face with a hat")):
        mask = Image.new("L", picture.size)
        mask.paste(255, (0, 0, 64, 28))
        kept = Image.composite(Image.new("RGB", picture.size, "grey"), picture, mask)
        painted = [draw(draw.pipe.inpaint, picture, mask, words, seeds=n)[0] for n in (1, 2, 3)]
        rows.append([picture, kept, *painted])
    return rows


def outpainting(draw: Drawing) -> Rows:
    """What is kept of the apple, on canvases where it lies in the middle and in a corner."""
    part = draw.apple.crop((12, 12, 52, 52))
    rows = []
    for offset in ((12, 12), (0, 0)):
        kept = Image.new("RGB", (64, 64), "grey")
        kept.paste(part, offset)
        settings = {"canvas": 64, "offset": offset}
        drawn = [
            draw(draw.pipe.outpaint, part, THINGS[0], **settings, seeds=n)[0] for n in (1, 2, 3)
        ]
        rows.append([kept, *drawn])
    return rows


def image_to_image(draw: Drawing) -> Rows:
    """The apple, then drawn as another thing with more and more strength."""
    strengths = (0.3, 0.5, 0.7, 0.9)
    drawn = [
        draw(draw.pipe.image_to_image, draw.apple, "a green apple", strength, seeds=1)[0]
        for strength in strengths
    ]
    return [[draw.apple, *drawn]]


def upscaling(draw: Drawing) -> Rows:
    """The apple, then its leaf at 64, 256, 1024 and 2048 pixels a side."""
    sizes = (256, 1024, 2048)
    drawn = [draw.pipe.upscale(draw.apple, size, seeds=1).images[0] for size in sizes]
    parts = []
    for picture in (draw.apple, *drawn):
        edges = [round(share * picture.width) for share in (0.12, 0.03, 0.47, 0.38)]
        parts.append(picture.crop(edges))
    return [[draw.apple, *parts]]


PICTURES = {
    "plot": plot,
    "inpainting": inpainting,
    "outpainting": outpainting,
    "image-to-image": image_to_image,
    "upscaling": upscaling,
    "variations": variations,
    "inversion": inversion,
    "interpolation": interpolation,
    "text-diff": text_diff,
    "mixing": mixing,
    "projections": projections,
    "ablations": ablations,
    "clip-guidance": clip_guidance,
}


def enlarged(rows: Rows, side: int) -> Image.Image:
    """Rows of pictures as one sheet, each picture at the given side."""
    flat = [
        picture.resize((side, side), Image.Resampling.BICUBIC) for row in rows for picture in row
    ]
    return sheet(flat, len(rows[0]))


def main() -> None:
    """Draw the sheets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--pictures", default="data/emoji/64/noto", help="to find components of")
    parser.add_argument("--steps", type=int, default=20, help="of the decoder")
    parser.add_argument("--side", type=int, default=96, help="pixels of a picture on a sheet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="docs/guide", help="folder")
    args = parser.parse_args()
    if "projections" in args.only and not any(Path(args.pictures).glob("*.png")):
        parser.error(f"--pictures: no PNG in {args.pictures}; draw others alone by --only")
    draw = Drawing(args)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        picture = enlarged(PICTURES[name](draw), args.side).quantize(NUM_COLOURS)
        picture.save(folder / f"{name}.png", optimize=True)
        print(f"wrote {folder / name}.png", flush=True)


if __name__ == "__main__":
    main()
