"""unclip-train: train or resume one stage or all, put trained stages together as a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

STAGES = ("clip", "prior", "decoder", "upsampler")
MAX_LINE = 1000  # characters of an error; compilers tell thousands
EXAMPLES = """examples:
  unclip-train clip --config emoji/clip
  unclip-train prior --config emoji/prior run.steps=2000
  unclip-train decoder --config configs/emoji/decoder.yaml
  unclip-train upsampler --config emoji/upsampler_256
  unclip-train upsampler --resolution 1024
  unclip-train assemble --config emoji/assemble --runs runs/emoji --output my-model
  unclip-train all --config emoji --output my-model decoder.run.steps=9000

"all" trains every stage that the folder of --config describes, each in a process of its own, and
then assembles them; decoder.run.steps=9000 is told to the decoder alone, run.steps=9000 to all.

The same command again goes on where the run stopped. Under `accelerate launch` it runs on many
processes. Keys are those of the YAML file; --dry-run prints the whole configuration.
"""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        """Name the argument and leave."""
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')}\n")


def build_parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    parser = Parser(
        "unclip-train",
        description="Train or resume one stage of unCLIP.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=[*STAGES, "assemble", "all"], help="what to train")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    parser.add_argument("--config", help="YAML file (all: a folder), or installed name")
    parser.add_argument(
        "--resolution", type=int, choices=(256, 1024), help="which upsampler, in place of --config"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and print, train nothing")
    parser.add_argument("--runs", help="assemble, all: folder with a run folder for each stage")
    parser.add_argument("--output", help="assemble, all: folder of the model to write")
    parser.add_argument(
        "--side-by-side", type=int, default=1, metavar="N", help="all: stages at once (default 1)"
    )
    parser.add_argument("--minutes", type=float, help="all: save and stop after so long")
    parser.add_argument("--debug", action="store_true", help="show the trace of an error")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    args = build_parser().parse_intermixed_args(arguments)
    try:
        return {"assemble": assemble, "all": train_all}.get(args.stage, train)(args)
    except Exception as error:
        if args.debug:
            raise
        line = " ".join(str(error).split()) or type(error).__name__
        print(f"unclip-train {args.stage}: {line[:MAX_LINE]}", file=sys.stderr)
        return exit_code(error)


def exit_code(error: Exception) -> int:
    """2 for what the user can mend in the command or its files, 1 for a run that broke."""
    from unclip_train.config import ConfigError

    if hasattr(error, "exit_code"):  # stopped by a signal
        return error.exit_code
    return 2 if isinstance(error, (ConfigError, FileNotFoundError, FileExistsError)) else 1


def train(args: argparse.Namespace) -> int:
    """Check the configuration, then train."""
    from unclip_train.checks import check_config
    from unclip_train.config import ConfigError, load_config

    name = args.config
    if name is None and args.stage == "upsampler" and args.resolution:
        name = f"emoji/upsampler_{args.resolution}"
    if name is None:
        raise ConfigError("--config is missing: give a YAML file or a name such as emoji/decoder")
    config = load_config(args.stage, name, args.overrides)
    if args.resolution and args.resolution != config.data.size:
        raise ConfigError(
            f"--resolution {args.resolution} does not fit the config's data.size {config.data.size}"
        )
    check_config(args.stage, config)
    if args.dry_run:
        from omegaconf import OmegaConf

        from unclip_train.dry_run import dry_run

        silence_progress_bars()
        lines = dry_run(args.stage, config)
        print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
        print("\n".join(f"# {line}" for line in lines))
        return 0
    from unclip_train.data.build import make_held_out, pin_data
    from unclip_train.engine import Engine

    silence_progress_bars()
    stage, dataset = make_stage(args.stage, config)
    own = stage.network.clip.tokenizer.get_vocab() if args.stage == "clip" else None
    pin_data(config.output, dataset, own)
    held_out = make_held_out(args.stage, config) if config.run.validate_every else None
    Engine(stage, dataset, config, held_out).train()
    return 0


def silence_progress_bars() -> None:
    """Keep the libraries' bars out of files and pipes."""
    if sys.stderr.isatty():
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()


def make_stage(name: str, config):
    """The stage and the data it learns from."""
    import torch

    from unclip_train import clip, decoder, distillation, prior, upsampler
    from unclip_train.data.build import captions_of, make_dataset, make_held_out
    from unclip_train.data.loader import collate

    torch.manual_seed(config.run.seed)  # of the initial weights
    dataset = make_dataset(name, config)
    if name == "clip":
        return clip.make_stage(config, captions_of(dataset, config)), dataset
    if name == "prior":
        held_out = make_held_out(name, config) if config.prompts else None
        return prior.make_stage(config, dataset, held_out), dataset
    shown = (make_held_out(name, config) if config.run.preview_every else None) or dataset
    preview_batch = collate([shown[position] for position in range(8)])
    if name == "upsampler":
        return upsampler.make_stage(config, preview_batch), dataset
    stage = decoder.make_stage(config, preview_batch, dataset)
    if config.distill.teacher is not None:
        stage = distillation.make_stage(config, stage)
    return stage, dataset


def train_all(args: argparse.Namespace) -> int:
    """Train every stage of a family, then put them together."""
    import shlex

    from unclip_train.assembly import assemble_model, check_output
    from unclip_train.config import AssemblyConfig, ConfigError, load_config
    from unclip_train.family import Family, check_jobs, family_folder, plan

    for name, value in (("--side-by-side", args.side_by_side), ("--minutes", args.minutes)):
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be more than 0, not {value}")
    if args.config is None:
        raise ConfigError("--config is missing: give a folder of YAML files, or a name like emoji")
    folder = family_folder(args.config)
    runs = Path(args.runs or Path("runs", folder.name))
    family = Family(plan(folder, runs, args.overrides), args.side_by_side, args.minutes)
    how = folder / "assemble.yaml"
    sampling = load_config("assemble", how) if how.is_file() else AssemblyConfig()
    if args.output:
        check_output(Path(args.output))
    check_jobs(family.jobs)
    if args.dry_run:
        for job in family.jobs:
            print(shlex.join(job.command))
        return 0
    family.train()
    if not family.is_complete:
        print(f"{args.minutes:g} minutes are over, all is saved; the same command goes on")
    elif args.output:
        silence_progress_bars()
        print(assemble_model(runs, Path(args.output), sampling))
    return 0


def assemble(args: argparse.Namespace) -> int:
    """Write the trained stages of a folder of runs as one model."""
    from unclip_train.assembly import assemble_model
    from unclip_train.config import AssemblyConfig, ConfigError, load_config

    if not args.runs or not args.output:
        raise ConfigError("assemble needs --runs FOLDER and --output FOLDER")
    config = AssemblyConfig()
    if args.config:
        config = load_config("assemble", args.config, args.overrides)
    elif args.overrides:
        raise ConfigError(f"{args.overrides[0]}: settings need a --config to change")
    silence_progress_bars()
    print(assemble_model(Path(args.runs), Path(args.output), config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
