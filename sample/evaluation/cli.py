"""unclip-eval: measure a model and show it as a report; compare two reports."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unclip_sample.evaluation.words import parser, sizes_of
from unclip_sample.outputs import check_writable
from unclip_sample.request import RequestError
from unclip_sample.running import exit_status, quiet_libraries


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 when done, 2 for a mistake in the words, 1 for a run that failed."""
    words = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(words)

    def work() -> int:
        if args.command in COMMANDS:
            return COMMANDS[args.command](args, words)
        return args.run(args)

    return exit_status("unclip-eval", work, getattr(args, "debug", False))


def report(args: argparse.Namespace, words: list[str]) -> int:
    """Measure the sections asked for and write the report."""
    folder = check_folder(args.output)
    bench = make_bench(args, folder, sizes_of(args.num))
    from unclip_sample.evaluation.report import REPORT, facts_of, make_report, sections_for

    names = sections_for(list(bench.source.groups), args.sections)
    results = make_report(bench, names, facts_of(bench, words), folder)
    if bench.studio.processes.is_main:
        if args.format == "json":
            said = {"report": str(folder / REPORT), "drawn": bench.studio.num_drawn}
            print(json.dumps({**said, "sections": list(results.sections)}, indent=2))
        elif not args.quiet:
            print(f"wrote {folder / REPORT}")
    return 0


def compare(args: argparse.Namespace, words: list[str]) -> int:
    """Print the differences of two reports, and write them as a page where a folder is named."""
    from unclip_sample.evaluation.comparison import compare_reports, write_comparison
    from unclip_sample.evaluation.results import markdown

    folders = [Path(name) for name in args.reports]
    comparison = compare_reports(*folders, words)
    if args.output is not None:
        page = write_comparison(comparison, folders, check_folder(args.output))
    tables = [table for section in comparison.sections.values() for table in section.tables]
    if args.format == "json":
        rows = [
            {c.name: cell for c, cell in zip(table.columns, row, strict=True)}
            for table in tables
            for row in table.rows
        ]
        print(json.dumps(rows, indent=2))
    else:
        print("\n\n".join(f"{table.title}\n\n{markdown(table)}" for table in tables))
        if args.output is not None and not args.quiet:
            print(f"\nwrote {page}")
    return 0


def export(args: argparse.Namespace, words: list[str]) -> int:
    """Draw prompts into the folders that another benchmark reads."""
    from unclip.pipeline.folder import model_hash
    from unclip_sample import exports
    from unclip_sample.cli import model_folder

    model, folder = model_folder(args.model), Path(args.output)
    geneval = args.layout == "geneval"
    read = exports.read_geneval_prompts(Path(args.prompts)) if geneval else read_plain(args.prompts)
    check_writable(folder)
    names = ("layout", "seed", "num_images", "size")
    settings = {name: getattr(args, name) for name in names}
    exports.check_same_settings(folder, {"model": model_hash(model), **settings})
    pipeline, _ = load_pipeline(args, model)
    say = speaker(args, True)

    def draw(number: int, prompt: str) -> list:
        say(f"{number + 1} of {len(read)}: {prompt}")
        first = args.seed + number * args.num_images
        seeds = list(range(first, first + args.num_images))
        return pipeline([prompt] * len(seeds), seeds=seeds, size=args.size).images

    if geneval:
        num_drawn = exports.write_geneval(folder, read, draw)
    else:
        num_drawn = exports.write_compbench(folder, read, args.num_images, draw)
    said = {"folder": str(folder), "prompts": len(read), "drawn_now": num_drawn}
    print(json.dumps(said, indent=2) if args.format == "json" else f"wrote {folder}")
    return 0


def read_plain(path: str) -> list[str]:
    """The lines of a text file that are not blank, a prompt each."""
    from unclip_sample.prompts import PromptsError, read_lines

    try:
        prompts = [line.strip() for line in read_lines(path) if line.strip()]
    except PromptsError as error:
        raise RequestError(f"--prompts: {error}") from None
    if not prompts:
        raise RequestError(f"--prompts: {path} has no prompt; give one on each line")
    return prompts


def check_folder(name: str) -> Path:
    """A folder to write in, made where it is not there; one of something else is refused."""
    from unclip_sample.evaluation.results import RESULTS

    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--output: {name} is a file; name a folder")
    ours = [RESULTS, "pictures", "comparison.html"]
    if folder.is_dir() and any(folder.iterdir()):
        if not any((folder / entry).exists() for entry in ours):
            raise RequestError(f"--output: {name} holds other files; name a new folder")
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_bench(args: argparse.Namespace, folder: Path, sizes: dict[str, int]) -> Any:
    """Model, judge and data, loaded and checked."""
    from unclip_sample.cli import model_folder
    from unclip_sample.encoder import find_clip

    model = model_folder(args.model)
    if args.judge is not None:
        find_clip(args.judge, "--judge")
    pipeline, processes = load_pipeline(args, model)
    from unclip.pipeline.folder import model_hash
    from unclip_sample.evaluation.bench import Bench
    from unclip_sample.evaluation.judge import Judge
    from unclip_sample.evaluation.sources import open_data
    from unclip_sample.evaluation.studio import Studio

    size = args.size or pipeline.decoder.config.size
    try:
        source = open_data(args.data, size, args.styles)
    except (FileNotFoundError, ValueError) as error:
        raise RequestError(str(error)) from None
    judge = Judge.load(args.judge, pipeline, model, pipeline.device)
    digest, batch = model_hash(model), args.batch_size
    studio = Studio(pipeline, model.name, digest, folder, size, batch, processes, args.quiet)
    extract = None if args.inception is None else inception_of(args.inception, pipeline.device)
    say = speaker(args, processes.is_main)
    return Bench(studio, judge, source, args.seed, sizes, extract, say)


def inception_of(weights: str, device: Any) -> Callable[[Any], Any]:
    """Inception's features [1, 2048] of a Pillow image; see inception.py for the preprocessing."""
    from unclip_sample.inception import features_and_probabilities, load_inception, view

    if not Path(weights).is_file():
        raise RequestError(f"--inception: {weights} does not exist; name the file of its weights")
    network = load_inception(Path(weights), device)
    return lambda image: features_and_probabilities(view(network, image, image.width))[0]


def load_pipeline(args: argparse.Namespace, model: Path) -> tuple[Any, Any]:
    """The pipeline on its device, and the processes that draw together."""
    quiet_libraries()
    import torch

    from unclip import UnCLIPPipeline
    from unclip_sample.cli import check_device
    from unclip_sample.evaluation.studio import Processes

    if args.threads:
        torch.set_num_threads(args.threads)
    processes = Processes.join()
    device = check_device(args.device or str(getattr(processes.state, "device", "cpu")))
    pipeline = UnCLIPPipeline.from_pretrained(model, getattr(torch, args.dtype), device)
    pipeline.set_progress_bar_config(disable=True)
    if args.size is not None:
        check_size(pipeline, args.size)
    return pipeline, processes


def check_size(pipeline: Any, size: int) -> None:
    """Refuse a size that the model does not draw."""
    from unclip.pipeline.arguments import check_size as check

    try:
        check(size, pipeline.components)
    except ValueError as error:
        raise RequestError(f"--{error}") from None


def speaker(args: argparse.Namespace, is_main: bool) -> Callable[[str], None]:
    """What tells how far a run is: lines on stderr."""
    if args.quiet or not is_main:
        return lambda line: None
    return lambda line: print(line, file=sys.stderr, flush=True)


COMMANDS = {"report": report, "compare": compare, "export": export}


if __name__ == "__main__":
    sys.exit(main())
