"""The folder of `--state-dir`: its files, what is in them, and who holds it."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.core.keeping import KeptBucket
from sluice.core.keys import OVERFLOW, BucketKey, Scope
from sluice.core.limits import DAY, HOUR, MINUTE, SECOND
from sluice_sidecar.stores.counts_file import CountsFile, Held
from sluice_sidecar.stores.counts_format import HEAD, Moment, Unreadable, bucket_texts, line, passed, read

ALICE = KeptBucket(BucketKey("openai", Scope.USER, "alice"), {MINUTE: [61, 1, 30], DAY: [0, 1, 30]}, {})
THEN = Moment(axis=62 * SECOND, monotonic=62 * SECOND, wall=10**18, boot="first")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[CountsFile]:
    file = CountsFile(tmp_path / "state")
    yield file
    file.close()


def saved(*buckets: KeptBucket) -> bytes:
    return b"".join(line(THEN, [bucket_texts([bucket]) for bucket in buckets]))


def names(file: CountsFile) -> list[str]:
    return sorted(path.name for path in file.folder.iterdir())


# -- format --------------------------------------------------------------------------------------------------------


def test_a_save_is_a_line_that_people_can_read() -> None:
    assert saved(ALICE) == (
        b'2ce411cb {"axis":62000000000,"monotonic":62000000000,"wall":1000000000000000000,"boot":"first","buckets":'
        b'[["openai","User","alice","",{"minute":[61,1,30],"day":[0,1,30]}]]}\n'
    )


@pytest.mark.parametrize("subject", ["", OVERFLOW, "a\nb", '"]', "\ud800", "ünï", "x" * 65536])
def test_every_subject_comes_back_as_it_was(subject: str) -> None:
    kept = KeptBucket(BucketKey("p", Scope.ORG, subject, "gpt-5*,o4"), {HOUR: [1, 2, 3]}, {MINUTE: [7, 8, 9]})

    (found,) = read(HEAD + saved(kept)).buckets

    assert found.key == kept.key
    assert {length: list(slots) for length, slots in found.calls.items()} == kept.calls
    assert {length: list(slots) for length, slots in found.parts.items()} == kept.parts


def test_the_last_word_on_a_bucket_counts() -> None:
    later = ALICE._replace(calls={MINUTE: [61, 2, 60]})
    bob = ALICE._replace(key=ALICE.key._replace(subject="bob"))

    kept = read(HEAD + saved(ALICE, bob) + saved(later))

    counts = {bucket.key.subject: list(bucket.calls[MINUTE]) for bucket in kept.buckets}
    assert counts == {"alice": [61, 2, 60], "bob": [61, 1, 30]}


SOUND = saved(ALICE)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"\x7fELF", "is no file of counts"),
        (b"sluice counts 1", "is no file of counts"),
        (b"sluice counts 2\n", "has version 2 of the format, of another version of Sluice; this one reads version 1"),
        (HEAD, "holds no whole save"),
        (HEAD + SOUND[:-1], "holds no whole save"),
        (HEAD + SOUND.replace(b"alice", b"alicf"), "line 2 does not match its checksum"),
        (HEAD + bytes(4096), "holds no whole save"),
        (HEAD + bytes(4096) + b"\n", "line 2 does not match its checksum"),
    ],
)
def test_of_a_file_that_says_nothing_it_is_said_why(data: bytes, why: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read(data)

    assert str(raised.value) == why


@pytest.mark.parametrize(
    "slots",
    [
        pytest.param([63, 1, 30], id="a slot that is yet to come"),
        pytest.param([60, 1, 30, 60, 1, 30], id="a slot twice"),
        pytest.param([61, 1, 30, 60, 1, 30], id="slots out of order"),
        pytest.param([61, -1, 30], id="fewer than no requests"),
        pytest.param([61, 1, -30], id="fewer than no tokens"),
        pytest.param([61, 1], id="half a slot"),
        pytest.param([], id="no slot"),
        pytest.param([61, 1, 2**63], id="more than 64 bits"),
    ],
)
def test_slots_that_no_window_has_are_turned_down(slots: list[int]) -> None:
    with pytest.raises(Unreadable, match="line 2 is not as a gate writes it"):
        read(HEAD + saved(ALICE._replace(calls={MINUTE: slots})))


def test_damage_behind_a_good_save_is_said_and_the_good_save_counts() -> None:
    kept = read(HEAD + SOUND + SOUND.replace(b"61", b"60") + SOUND)

    assert (len(kept.buckets), kept.damage, kept.is_cut) == (1, "line 3 does not match its checksum", False)


def test_a_save_that_goes_back_in_time_is_damage() -> None:
    before = b"".join(line(THEN._replace(axis=THEN.axis - 1), []))

    assert read(HEAD + SOUND + before).damage == "line 3 is not as a gate writes it"


def test_a_save_that_was_cut_is_no_damage() -> None:
    kept = read(HEAD + SOUND + SOUND[:40])

    assert (len(kept.buckets), kept.damage, kept.is_cut) == (1, "", True)


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (THEN._replace(monotonic=THEN.monotonic + 5 * SECOND), 5),
        (THEN._replace(monotonic=THEN.monotonic + 5 * SECOND, wall=0), 5),
        (THEN._replace(monotonic=0, wall=THEN.wall + 7 * SECOND, boot="second"), 7),
        (THEN._replace(monotonic=10**17, wall=THEN.wall + 7 * SECOND, boot="second"), 7),
        (THEN._replace(wall=THEN.wall - 7 * SECOND, boot="second"), 0),
        (THEN._replace(wall=2**62, boot="second"), 2 * 86400),
        (THEN._replace(monotonic=2**62), 2 * 86400),
        (THEN._replace(monotonic=1, wall=THEN.wall + 7 * SECOND), 7),
    ],
)
def test_what_has_passed_is_told_by_the_clock_that_both_lives_share(now: Moment, seconds: int) -> None:
    assert passed(THEN, now) == seconds * SECOND


def test_without_a_boot_to_compare_the_wall_clock_tells() -> None:
    then, now = THEN._replace(boot=""), THEN._replace(boot="", monotonic=10**15, wall=THEN.wall + 3 * SECOND)

    assert passed(then, now) == 3 * SECOND


# -- folder --------------------------------------------------------------------------------------------------------


def test_what_is_written_and_appended_is_read(file: CountsFile) -> None:
    assert file.hold()
    assert file.read() is None
    file.write([b"one\n"])
    file.append([b"two\n"])

    assert (file.read(), file.size) == (HEAD + b"one\ntwo\n", len(HEAD) + 8)
    assert names(file) == ["counts", "lock"]


def test_nobody_else_may_read_what_is_saved(file: CountsFile) -> None:
    file.write([b"one\n"])

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (file.folder, *file.folder.iterdir())}
    assert modes == {"state": 0o700, "counts": 0o600, "lock": 0o600}


def test_the_old_file_stays_until_the_new_one_is_there(file: CountsFile) -> None:
    file.write([b"one\n"])
    (file.folder / "counts.new").mkdir()

    with pytest.raises(OSError, match=r"counts\.new"):
        file.write([b"two\n"])

    assert file.read() == HEAD + b"one\n"
    (file.folder / "counts.new").rmdir()
    file.write([b"three\n"])
    assert file.read() == HEAD + b"three\n"


def test_what_a_gate_that_was_killed_left_half_written_is_replaced(file: CountsFile) -> None:
    file.hold()
    (file.folder / "counts.new").write_bytes(b"half")

    file.write([b"one\n"])

    assert names(file) == ["counts", "lock"]


def test_nothing_is_appended_to_a_file_that_somebody_took_away(file: CountsFile) -> None:
    file.write([b"one\n"])
    file.path.unlink()

    with pytest.raises(FileNotFoundError, match="taken away"):
        file.append([b"two\n"])

    assert file.size == 0


def test_a_link_is_not_followed(file: CountsFile, tmp_path: Path) -> None:
    file.folder.mkdir()
    (file.folder / "lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError, match="lock"):
        file.hold()

    assert not (tmp_path / "elsewhere").exists()


def test_one_damaged_file_is_kept(file: CountsFile) -> None:
    file.hold()
    for text in ("first", "second"):
        file.path.write_text(text)
        file.set_aside()

        file.write([text.encode()])

    assert names(file) == ["counts", "counts.damaged", "lock"]
    assert (file.folder / "counts.damaged").read_text() == "second"
    assert file.read() == HEAD + b"second"


def test_a_folder_is_held_by_one_at_a_time_and_let_go_in_the_end(file: CountsFile) -> None:
    other = CountsFile(file.folder)
    file.hold()
    with pytest.raises(Held, match="another gate keeps its counts there"):
        other.hold()
    file.close()

    assert not other.hold()
    other.close()


def test_a_folder_is_let_go_by_whoever_is_killed(file: CountsFile) -> None:
    script = (
        "import sys, signal, os; from pathlib import Path; from sluice_sidecar.stores.counts_file import CountsFile\n"
    )
    script += "held = CountsFile(Path(sys.argv[1])); held.hold(); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", script, str(file.folder)], check=False)

    assert done.returncode == -9
    assert not file.hold()
