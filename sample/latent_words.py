"""The words of unclip-sample for operations on latents, and which of them go together."""

from __future__ import annotations

import argparse

from unclip_sample.frames import is_animation
from unclip_sample.outputs import PICTURES
from unclip_sample.request import RequestError, read_record
from unclip_sample.stage_words import OF_THE_PRIOR
from unclip_sample.words import number, share, whole

OPERATIONS = ("eta", "interpolate", "text_diff", "mix", "project", "condition")
# Options that speak of some operations only, with the words that they go with.
OWN_OPTIONS = {
    "noise": ("interpolate",),
    "frames": ("interpolate", "text_diff"),
    "base": ("text_diff",),
    "max_theta": ("text_diff",),
    "weights": ("mix",),
    "fit_on": ("project",),
    "refinements": ("eta", "interpolate", "text_diff"),
    "grid": OPERATIONS,
}
PATHS = ("interpolate", "text_diff", "project")  # one picture a frame
NOT_WITH_ANY = ("best_of", "x", "y", "cell", "reuse", "dynamic_threshold", "prior_negative_prompt")
OF_A_SUBJECT = ("text_diff", "project")
OF_SUBJECTS = ("interpolate", "mix")


# The words


def add_words(group: argparse._ArgumentGroup) -> None:
    """Options of operations on latents."""
    subjects = {"nargs": "+", "metavar": "PICTURE|TEXT"}
    group.add_argument(
        "--eta", type=share, metavar="X", help="vary --image from its own noise; 0 is the same"
    )
    group.add_argument("--interpolate", **subjects, help="go from each to the next")
    group.add_argument("--text-diff", metavar="TEXT", help="lead --image or --prompt to a text")
    group.add_argument("--mix", **subjects, help="draw them as one")
    group.add_argument(
        "--project", type=counts, metavar="K[,K...]", help="principal components of z_img to keep"
    )
    group.add_argument(
        "--condition",
        choices=("prior", "z_txt", "caption"),
        help="what the decoder sees beside --prompt; caption: nothing",
    )
    group.add_argument("--clip-guidance", type=weight, metavar="X", help="by CLIP's gradient")
    group.add_argument("--clip-prompt", metavar="TEXT", help="what that is of; --prompt")
    group.add_argument("--noise", choices=("slerp", "fixed"), help="of --interpolate; slerp")
    group.add_argument("--frames", type=frames, metavar="N", help="of a way, both ends included")
    group.add_argument("--base", metavar="TEXT", help="what --text-diff leads away from; '': none")
    group.add_argument("--max-theta", type=share, metavar="X", help="share of its angle; 0.4")
    group.add_argument("--weights", type=weights, metavar="W[,W...]", help="of --mix; equal")
    group.add_argument("--fit-on", metavar="FOLDER|FILE", help="pictures of --project")
    group.add_argument("--refinements", type=refinements, metavar="N", help="of inversion; 3")
    group.add_argument("--grid", action="store_true", help="all pictures on one sheet")


def weight(text: str) -> float:
    """A number from 0 to 1000."""
    return number(text, 0, 1000)


def weights(text: str) -> list[float]:
    """Numbers from -100 to 100."""
    return [number(part, -100, 100) for part in text.split(",")]


def frames(text: str) -> int:
    """A number of frames."""
    return whole(text, 2, 1000)


def refinements(text: str) -> int:
    """A number of fixed-point iterations."""
    return whole(text, 0, 100)


def counts(text: str) -> list[int]:
    """Numbers of principal components."""
    return [whole(part, 0, 100_000) for part in text.split(",")]


# What they ask for


def wanted(args: argparse.Namespace) -> bool:
    """Whether the words ask for an operation on latents, or for a picture that one made."""
    words = (*OPERATIONS, *OWN_OPTIONS, "clip_guidance", "clip_prompt")
    if any(given(args, word) for word in words):
        return True
    return args.source is not None and "latents" in read_record(args.source)


def given(args: argparse.Namespace, name: str) -> bool:
    """Whether an option stands in the words; it may be 0."""
    return getattr(args, name) is not None and getattr(args, name) is not False


def operation_of(args: argparse.Namespace) -> str:
    """The one operation that the words ask for.

    Raises:
        RequestError: for none, several, or options that do not go with it.
    """
    asked = [name for name in OPERATIONS if getattr(args, name) is not None]
    if args.source is not None:
        others = [name for name in asked if name != "eta"]
        if others:
            raise RequestError(f"--from: draws a picture again; give it without {word(others[0])}")
        operation = "again"
    elif len(asked) > 1:
        raise RequestError(f"{word(asked[1])}: give it without {word(asked[0])}")
    elif asked:
        operation = asked[0]
    else:
        operation = "eta" if args.image else "condition"
    for option, operations in OWN_OPTIONS.items():
        if given(args, option) and operation not in operations:
            partners = " or ".join(word(name) for name in operations)
            raise RequestError(f"{word(option)}: give it with {partners}")
    check_subject(args, operation)
    check_settings(args, operation)
    return operation


def check_subject(args: argparse.Namespace, operation: str) -> None:
    """Refuse an operation without its subject, or with one too many."""
    if args.prompts is not None:
        raise RequestError(f"--prompts: give one --prompt with {word(operation)}")
    if args.prompt is not None and len(args.prompt) > 1:
        raise RequestError(f"--prompt: give one with {word(operation)}")
    if args.prompt is not None and not args.prompt[0].strip():
        raise RequestError("--prompt is empty: say what to draw, or leave it out")
    if operation == "eta" and args.image is None:
        raise RequestError("--image is missing: --eta varies a picture")
    if operation == "condition" and args.prompt is None:
        raise RequestError("--prompt is missing: say what to draw")
    if operation in (*OF_SUBJECTS, "condition", "again") and args.image is not None:
        advice = "name the picture after it" if operation in OF_SUBJECTS else "leave one out"
        raise RequestError(f"--image: does not go with {word(operation)}; {advice}")
    if operation in OF_A_SUBJECT and args.image is None and args.prompt is None:
        raise RequestError(f"--image is missing: give it or --prompt to {word(operation)}")
    if operation == "interpolate" and len(args.interpolate) < 2:
        raise RequestError("--interpolate: give two or more pictures or texts")
    if operation == "project" and args.fit_on is None:
        raise RequestError("--fit-on is missing: give a folder of pictures to find components of")


def check_settings(args: argparse.Namespace, operation: str) -> None:
    """Refuse settings that change nothing in an operation, or cannot be followed."""
    if operation in (*PATHS, "again") and args.num_images > 1:
        raise RequestError(f"--num-images: {word(operation)} draws its own number of pictures")
    if args.scheduler not in (None, "ddim"):
        raise RequestError("--scheduler: latents are decoded by ddim; leave it out")
    for name in NOT_WITH_ANY:
        if given(args, name):
            raise RequestError(f"{word(name)}: does not go with {word(operation)}; leave it out")
    check_prior(args, operation)
    if args.weights is not None and len(args.weights) != len(args.mix):
        raise RequestError(f"--weights: give {len(args.mix)}, one for each of --mix")
    if args.clip_prompt is not None and args.clip_guidance is None and operation != "again":
        raise RequestError("--clip-prompt: give it with --clip-guidance")
    if args.clip_guidance and not (args.clip_prompt or args.prompt or operation == "again"):
        raise RequestError("--clip-guidance: give --clip-prompt, the text that it leads to")
    if args.base is not None and args.base.strip() == (args.text_diff or "").strip():
        raise RequestError("--base: is the same text as --text-diff")
    if args.grid and is_animation(args.output):
        raise RequestError("--grid: is one PNG; name the --output so, or leave it out")


def check_prior(args: argparse.Namespace, operation: str) -> None:
    """Refuse settings of the prior where it draws nothing."""
    subjects = getattr(args, operation) if operation in OF_SUBJECTS else []
    captions = any(not is_picture(subject) for subject in subjects)
    captions |= operation in OF_A_SUBJECT and args.image is None
    captions |= operation == "condition" and args.condition in (None, "prior")
    for name in OF_THE_PRIOR:
        if given(args, name) and not captions:
            raise RequestError(f"{word(name)}: no caption leads {word(operation)}; leave it out")


def is_picture(name: str) -> bool:
    """Whether a subject names a file, though it be one that cannot be read."""
    return name.lower().endswith(tuple(PICTURES))


def word(name: str) -> str:
    """The option of a name."""
    return "--from" if name == "again" else f"--{name.replace('_', '-')}"
