import io
from pathlib import Path

import pytest

from hkdpipe.pipeline.progress import Bars, Lines, make_reporter, print_summary
from hkdpipe.stages.shared.reporting import Summary, duration


def test_plain_lines() -> None:
    stream, now = io.StringIO(), [0.0]
    reporter = Lines(stream, clock=lambda: now[0])
    with reporter.phase("training", 10_000, "trajectories", done=2_000) as advance:
        for second in range(1, 41):
            now[0] = float(second)
            advance(2_000 + 200 * second, loss=0.12345)
    assert stream.getvalue().splitlines() == [
        "training: 2,000/10,000 trajectories",
        "training: 4,000/10,000 trajectories, 200/s, 30 s left, loss 0.1235",
        "training: 6,000/10,000 trajectories, 200/s, 20 s left, loss 0.1235",
        "training: 8,000/10,000 trajectories, 200/s, 10 s left, loss 0.1235",
        "training: 10,000/10,000 trajectories, 200/s, loss 0.1235, done in 40 s",
    ]


def test_a_phase_that_fails_or_has_nothing_to_do_claims_nothing() -> None:
    stream = io.StringIO()
    reporter = Lines(stream)

    def fails() -> None:
        with reporter.phase("a", 2, "units") as advance:
            advance(1)
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fails()
    with reporter.phase("b", 2, "units", done=2):
        pass
    assert stream.getvalue() == "a: 0/2 units\nb: 2/2 units\n"


def test_bars_keep_brackets_and_values() -> None:
    from rich.console import Console

    stream = io.StringIO()
    reporter = Bars(Console(file=stream, force_terminal=True, width=120, color_system=None))
    reporter.line("[training] kept")
    with reporter.phase("a [phase]", 10, "units", done=2) as advance:
        advance(9, loss=0.5)
        advance(10)
    assert "[training] kept" in stream.getvalue()
    assert "a [phase]" in stream.getvalue()
    assert "10/10 units" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("rank", "quiet", "heard"),
    [
        ("0", False, ["all is well", "a file is damaged"]),
        ("0", True, ["a file is damaged"]),
        ("1", False, []),
    ],
)
def test_who_speaks(
    rank: str, quiet: bool, heard: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is damaged is said even if nothing else is, but once."""
    monkeypatch.setenv("RANK", rank)
    reporter = make_reporter(quiet)
    with reporter.phase("training", 2, "trajectories"):
        reporter.line("all is well")
        reporter.warn("a file is damaged")
    said = capsys.readouterr()
    assert [line for line in said.err.splitlines() if "training" not in line] == heard
    assert said.out == ""


def test_summaries_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    print_summary(
        Summary("results [hkd]", (("[a]", long),), ("row", "value"), (Path("out"),), ("hkdpipe status",))
    )
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "results [hkd]"
    assert any(line.startswith("[a]") and line.endswith(long) for line in lines)
    assert lines[-3:] == ["wrote out", "Next:", "hkdpipe status"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (187, "3:07 min"),
        (8100, "2:15 h"),
        (360000, "100:00 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
