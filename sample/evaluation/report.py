"""A whole report: the sections that were asked for, one after another, into one folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unclip_sample.evaluation import cascade, embeddings, pairs, prior_sweep, sweeps, variety
from unclip_sample.evaluation.bench import Bench
from unclip_sample.evaluation.page import page_of
from unclip_sample.evaluation.results import Results, Section, write_text
from unclip_sample.evaluation.words import SIZES
from unclip_sample.request import RequestError

REPORT = "report.html"
OWN_ENCODER = (
    "No judge was given: the model is graded by its own CLIP, which also conditions the decoder "
    "and chooses among the prior's candidates. Read its figures beside those of the real "
    "pictures, and give an independent one by --judge."
)
OTHERS = {  # facts of which a report has one each
    "model": "another model",
    "judge": "another judge",
    "data": "other data",
    "seed": "another seed",
    "settings": "other settings",
}
GROUP_NAMES = {"heldout": "held out", "seen": "seen", "pairs": "pictures"}
SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "heldout": lambda bench: pairs.pairs(bench, "heldout"),
    "seen": lambda bench: pairs.pairs(bench, "seen"),
    "pairs": lambda bench: pairs.pairs(bench, "pairs"),
    "compositions": pairs.compositions,
    "guidance": sweeps.guidance,
    "ablation": embeddings.ablation,
    "variations": embeddings.variations,
    "components": embeddings.components,
    "steps": sweeps.steps,
    "candidates": sweeps.candidates,
    "prior": prior_sweep.prior,
    "lettering": embeddings.lettering,
    "nearest": variety.nearest,
    "diversity": variety.diversity,
    "cascade": cascade.cascade,
    "grid": variety.grid,
}
assert SECTIONS.keys() == SIZES.keys()


def sections_for(groups: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """The sections to make, in the report's order; all that the data allows unless named.

    Raises:
        RequestError: for a section that these data cannot give.
    """
    fitting = [name for name in SECTIONS if not _needs(name) or set(groups) >= _needs(name)]
    for name in asked or ():
        if name not in fitting:
            raise RequestError(
                f"--sections: {name} needs data of another kind; these give {', '.join(fitting)}"
            )
    return [name for name in fitting if asked is None or name in asked]


def _needs(name: str) -> set[str]:
    """The groups of examples without which a section cannot be made."""
    if name in ("heldout", "seen", "pairs"):
        return {name}
    return {"seen"} if name == "compositions" else set()


def make_report(bench: Bench, names: Sequence[str], facts: dict[str, Any], folder: Path) -> Results:
    """Measure the sections, and write results.json and report.html after each of them.

    Sections of an earlier run on the same model, judge, data and seed are kept.
    """
    results = earlier_results(folder, facts)
    for number, name in enumerate(names, start=1):
        before = bench.studio.num_drawn
        bench.say(f"{name} ({number} of {len(names)})")
        results.sections[name] = SECTIONS[name](bench)
        bench.say(f"  {bench.studio.num_drawn - before} pictures drawn")
        order = {section: place for place, section in enumerate(SECTIONS)}
        results.sections = dict(sorted(results.sections.items(), key=lambda s: order[s[0]]))
        if bench.studio.processes.is_main:
            write_report(results, folder)
    return results


def write_report(results: Results, folder: Path) -> None:
    """Write results.json and report.html."""
    results.save(folder)
    model = results.facts["model"]["name"]
    write_text(
        folder / REPORT, page_of(f"How good is the model {model}?", results, folder.joinpath)
    )


def earlier_results(folder: Path, facts: dict[str, Any]) -> Results:
    """What the folder holds of the same model, judge, data and seed; nothing in a new folder.

    Raises:
        RequestError: when it holds a report of something else.
    """
    try:
        results = Results.load(folder)
    except FileNotFoundError:
        return Results(facts)
    except ValueError as error:
        raise RequestError(f"--output: {error}") from None
    for what, other in OTHERS.items():
        if results.facts[what] != facts[what]:
            raise RequestError(f"--output: {folder} holds a report of {other}; name another folder")
    return Results(facts, results.sections)


def facts_of(bench: Bench, words: Sequence[str]) -> dict[str, Any]:
    """What is measured, by whom and with what; "shown" is what the report's head says."""
    studio, judge, source = bench.studio, bench.judge, bench.source
    config = studio.pipeline.config
    parts = studio.pipeline.components.values()
    parameters = sum(
        tensor.numel()
        for part in parts
        if hasattr(part, "parameters")
        for tensor in part.parameters()
    )
    versions = {name: version(name) for name in ("unclip", "torch", "diffusers", "transformers")}
    settings = {
        "size": studio.size,
        "guidance": dict(config.default_guidance),
        "guidance_interval": config.default_guidance_interval,
        "candidates": config.default_candidates,
        "steps": {name: config.default_steps[name] for name in studio.samplers},
        "samplers": studio.samplers,
        "dtype": str(studio.pipeline.decoder.dtype).removeprefix("torch."),
    }
    facts = {
        "model": {"name": studio.model, "hash": studio.digest, "parameters": parameters},
        "judge": {"name": judge.name, "hash": judge.digest, "independent": judge.independent},
        "data": {"name": source.name, "fingerprint": source.fingerprint, "size": source.size},
        "seed": bench.seed,
        "settings": settings,
        "versions": versions,
        "batch_size": studio.batch_size,
        "command": command_of(words),
        "date": date.today().isoformat(),
        "warnings": [] if judge.independent else [OWN_ENCODER],
    }
    return {**facts, "shown": _shown(facts, bench)}


def _shown(facts: Mapping[str, Any], bench: Bench) -> dict[str, str]:
    model, judge, settings = facts["model"], facts["judge"], facts["settings"]
    steps = ", ".join(
        f"{stage} {settings['steps'][stage]} by {sampler}"
        for stage, sampler in settings["samplers"].items()
    )
    counts = ", ".join(
        f"{len(group):,} {GROUP_NAMES[name]}" for name, group in bench.source.groups.items()
    )
    guidance = {stage: f"{scale:g}" for stage, scale in sorted(settings["guidance"].items())}
    if settings["guidance_interval"] is not None:
        low, high = settings["guidance_interval"]
        guidance["decoder"] += f" (from t = {high:g} to {low:g})"
    independence = "independent" if judge["independent"] else "the model's own"
    return {
        "Model": f"{model['name']} ({model['hash']})",
        "Parameters": f"{model['parameters'] / 1e6:.1f} M",
        "Judge": f"{judge['name']} ({independence})",
        "Data": f"{facts['data']['name']}: {counts}",
        "Pictures": f"{settings['size']} pixels a side",
        "Guidance": ", ".join(f"{stage} {scale}" for stage, scale in guidance.items()),
        "Steps": steps,
        "Candidates": f"{settings['candidates']} of the prior",
        "Seed": str(facts["seed"]),
        "Date": facts["date"],
        "Version": f"unclip {facts['versions']['unclip']}",
    }


def command_of(words: Sequence[str]) -> str:
    """The command line, paths reduced to their last part."""
    short = [Path(word).name if "/" in word else word for word in words]
    return shlex.join(["unclip-eval", *short])
