"""Draw the pictures that the documentation shows: a grid of captions, each drawn once.

python docs/draw_samples.py --output docs/samples.png
python docs/draw_samples.py --captions "a red apple" "a rocket" --columns 2 --output two.png
"""

from __future__ import annotations

import argparse

from PIL import Image

from unclip import UnCLIPPipeline

THINGS = (
    "a red apple", "a dog face", "a rocket", "a soccer ball", "a banana", "a hamburger",
    "a red heart", "a sunflower", "an octopus", "a guitar", "an automobile", "a house",
)  # fmt: skip


def grid(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size, row by row on a sheet."""
    side = pictures[0].width
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * side, number // columns * side))
    return sheet


def main() -> None:
    """Draw every caption with the same seed and settings, and save the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", nargs="+", default=list(THINGS))
    parser.add_argument("--style", default="noto", help="added to each caption; '' for none")
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, help="the model's unless given")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--side", type=int, default=256, help="pixels of a picture on the sheet")
    parser.add_argument("--size", type=int, default=1024, help="pixels at which it is drawn")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    pipeline = UnCLIPPipeline.from_pretrained(args.model)
    style = f", {args.style} style" if args.style else ""
    pictures = []
    for caption in args.captions:
        drawn = pipeline(
            caption + style, guidance_scale=args.guidance, seeds=[args.seed], size=args.size
        )
        picture = drawn.images[0]
        pictures.append(picture.resize((args.side, args.side), Image.Resampling.LANCZOS))
    grid(pictures, args.columns).save(args.output)


if __name__ == "__main__":
    main()
