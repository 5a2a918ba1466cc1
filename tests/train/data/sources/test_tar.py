"""The tar reader sees what the standard library wrote, and never more than it should."""

import io
import random
import tarfile
import time

import pytest

from unclip_train.data.sources.tar import TarError, read_members


def listed(content: bytes) -> tuple[list, str | None]:
    """All members, and the reason why reading stopped early."""
    members = []
    try:
        for member in read_members(io.BytesIO(content)):
            members.append(member)
    except TarError as error:
        return members, error.reason
    return members, None


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_every_dialect(form, tar_of):
    """Names of all lengths and scripts, as tarfile itself reads them."""
    names = ["a.txt", "folder/b.txt"]
    if form != tarfile.USTAR_FORMAT:
        names += ["long/" + "x" * 300 + ".txt", "\u00e4pfel/\u732b.txt"]
    content = tar_of([(name, name.encode() * 100) for name in names], form)
    members, reason = listed(content)
    assert reason is None and [member.name for member in members] == names
    for member in members:
        data = content[member.start : member.start + member.size]
        assert data == member.name.encode() * 100 and member.is_file


def test_kinds_of_members_are_told():
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
                info = tarfile.TarInfo("thing")
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
        members, reason = listed(file.getvalue())
    assert reason is None
    assert [(m.is_file, m.is_folder) for m in members] == [(False, True)] + 3 * [(False, False)]


@pytest.mark.parametrize(
    ("damage", "num_members", "reason"),
    [
        (lambda tar: b"", 0, "not a tar"),
        (lambda tar: b"<html>" + b"x" * 5000, 0, "not a tar"),
        (lambda tar: tar[:300], 0, "not a tar"),
        (lambda tar: tar[:1024], 1, "truncated shard"),  # at a member's boundary
        (lambda tar: tar[: 1024 + 512 + 2], 1, "truncated shard"),  # within its data
        (lambda tar: tar[:1024] + b"\1" + tar[1025:], 1, "broken header"),
    ],
)
def test_damage_is_named(damage, num_members, reason, tar_of):
    content = tar_of([(f"{number}.txt", b"text") for number in range(4)])
    members, found = listed(damage(content))
    assert (len(members), found) == (num_members, reason)


def test_random_damage_never_surprises(tar_of, samples):
    """2,000 archives with bytes changed, cut or put twice: members lie inside, or an error does."""
    rng, began = random.Random(0), time.perf_counter()
    sources = [
        tar_of([*samples(range(2)), ("long/" + "x" * 200 + ".txt", b"y")], form)
        for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    reasons = set()
    for trial in range(2000):
        content = bytearray(sources[trial % 2])
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(content))
            content[at] = rng.randrange(256)
            header = at // 512 * 512
            if rng.random() < 0.5 and header + 512 <= len(content):  # a lie with a right checksum
                content[header + 148 : header + 156] = b" " * 8
                total = sum(content[header : header + 512])
                content[header + 148 : header + 156] = b"%06o\0 " % total
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        members, reason = listed(bytes(content))
        reasons.add(reason)
        assert all(0 <= m.start and m.start + m.size <= len(content) for m in members)
    assert reasons == {None, "not a tar", "truncated shard", "broken header"}
    assert time.perf_counter() - began < 20
