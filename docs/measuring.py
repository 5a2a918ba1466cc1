"""What the scripts that measure a pipeline share: their words, the pipeline, a judge's scores."""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip import CLIP, UnCLIPPipeline


def parser_of(doc: str) -> argparse.ArgumentParser:
    """A parser that knows --model and --device; doc is that of the script."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", help="folder of a model; the embedded one unless given")
    parser.add_argument("--device", default="cpu")
    return parser


def add_drawing_words(parser: argparse.ArgumentParser) -> None:
    """How the captions are drawn, and where the sheet of pictures goes."""
    parser.add_argument("--style", default="noto", help="added to each caption; '' for none")
    parser.add_argument("--steps", type=int, help="of the decoder; the model's unless given")
    parser.add_argument("--output", help="PNG of pictures")


def quiet_pipeline(args: argparse.Namespace) -> UnCLIPPipeline:
    """The pipeline that the words name, without progress bars."""
    pipeline = UnCLIPPipeline.from_pretrained(args.model, device=args.device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judged(judge: CLIP, pictures: Tensor, caption: str) -> Tensor:
    """The judge's cosine [B] of pictures [B, 3, S, S] in [0, 1] with a caption."""
    with torch.no_grad():
        z_txt = judge.encode_text([caption]).z_txt
        z_img = judge.encode_image(pictures * 2 - 1)
    return F.cosine_similarity(z_img, z_txt)
