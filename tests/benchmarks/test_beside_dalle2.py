"""Benchmarks beside dalle2-pytorch: sides take turns, ratios are theirs, ours runs alone too."""

import json
import sys
from pathlib import Path

import pytest

ROOM = Path(__file__).parents[2] / "benchmarks"
ECHO = """
import json, sys
spec = json.loads(sys.stdin.readline())
print(json.dumps({"parameters": spec["size"]}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": 2.0 * int(line)}), flush=True)
"""


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """The scripts' own folder is where a script looks first."""
    monkeypatch.syspath_prepend(str(ROOM))


def test_sides_take_turns():
    from interleaved import compare, take_turns

    calls = []

    def side(name, seconds):
        return lambda times: calls.append((name, times)) or seconds * times

    seconds = take_turns({"ours": side("ours", 1.0), "peer": side("peer", 3.0)}, 2, 4)
    assert calls == [("ours", 1), ("peer", 1), *[("ours", 4), ("peer", 4)] * 2]
    assert seconds == {"ours": [1.0, 1.0], "peer": [3.0, 3.0]}
    fast = {"median": 3.0, "least": 3.0, "largest": 3.0, "best": 3.0}
    assert compare(seconds, "peer")["times_as_fast"] == {"ours": fast}
    assert "times_as_fast" not in compare({"ours": [1.0]}, "peer")


def test_a_worker_answers_or_is_quoted(tmp_path):
    from interleaved import Worker

    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    with Worker(sys.executable, script, {"size": 7}) as worker:
        assert (worker.facts["parameters"], worker(3)) == (7, 6.0)
    script.write_text("raise SystemExit('no such library')")
    with pytest.raises(RuntimeError, match="no such library"):
        Worker(sys.executable, script, {"size": 7})


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_training_by_itself(stage, capsys):
    import dalle2_training

    words = [stage, "--size", "tiny", "--batch-size", "4", "--rounds", "1"]
    dalle2_training.main(words)
    report = json.loads(capsys.readouterr().out)
    (name,) = report["parameters"]
    assert report["pairs_per_s"][name] == pytest.approx(4 / report["seconds"][name])


def test_sampling_by_itself(capsys):
    import dalle2_sampling

    words = ["--size", "tiny", "--batch-size", "2", "--rounds", "1", "--steps", "3", "2", "2"]
    dalle2_sampling.main(words)
    (rows,) = json.loads(capsys.readouterr().out)["rows"].values()
    # in two calls: guided steps see every row twice, and the prior draws two candidates
    assert rows == {"prior": 2 * 3 * 2 * 2 * 2, "decoder": 2 * 2 * 2 * 2, "upsampler": 2 * 2 * 2}


def test_sizes_of_both_sides_are_within_five_percent():
    import torch
    from dalle2_sizes import CONTEXT, SIZES

    from unclip import Decoder, Prior, Upsampler

    sizes = SIZES["full"]
    shared = {"embedding_dim": sizes["dim"], "context": CONTEXT}
    peer = {"prior": 23_239_184, "decoder": 51_568_006, "upsampler": 16_177_852}  # as counted there
    with torch.device("meta"):
        networks = [("prior", Prior(**shared, **sizes["prior"]))]
        for decoder, upsampler in sizes["ours"].values():
            networks.append(("decoder", Decoder(**shared, **sizes["decoder"], **decoder)))
            networks.append(("upsampler", Upsampler(size=256, scale_shift=True, **upsampler)))
    for name, network in networks:
        count = sum(parameter.numel() for parameter in network.parameters())
        assert abs(count / peer[name] - 1) < 0.055, (name, count)
