"""``python -m vpeft_bench runs``: where runs stand while others write them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.runs.test_sweep import TINY, jobs_of
from vpeft_bench.cli.runs import main
from vpeft_bench.cli.runs_tables import overview
from vpeft_bench.errors import ConfigError, RecordError
from vpeft_bench.records import run_record
from vpeft_bench.records.run_record import CLAIM, Status
from vpeft_bench.runs import sweep
from vpeft_bench.runs.claim import Holder, claimed
from vpeft_bench.runs.status import RunStatus, State, log_of, notes_now, statuses
from vpeft_bench.terminal import Terminal


@pytest.fixture
def results(cli: Cli, tmp_path: Path, tiny_data: Path) -> Path:
    """A sweep of five runs: one done, one failed, one begun by a process that is gone, two not."""
    place = tmp_path / "runs"
    options = ("method=linear", "data=imagelist", f"data.root={tiny_data}", *TINY)
    assert cli(*options, f"results_dir={place}", "seed=0").returncode == 0
    jobs = jobs_of(tmp_path, tiny_data, "seed=0,1,2,3,4")
    files = [standing.file for standing in jobs.standings]
    jobs.run(place / "sweeps" / "today", lambda some, first: None)
    [(_, record)] = run_record.find([place]).records
    for file in files[1:3]:
        assert file is not None
        file.parent.mkdir(parents=True)
    assert files[1] is not None
    happened = replace(record.happened, last_epoch=None)
    failed = replace(record, status=Status.FAILED, error="OSError: no room", happened=happened)
    failed = replace(failed, asked={**record.asked, "seed": 1})
    run_record.write(failed, files[1])
    answer = sweep.Answer("failed", False, "no room", files[1])
    sweep.write_note(place / "sweeps" / "today" / "9", jobs.jobs[1].overrides, answer)
    (place / "sweeps" / "today" / "9" / "traceback.txt").write_text("Traceback\nOSError: no room\n")
    assert files[2] is not None
    gone = replace(Holder.here(), born=1)
    (files[2].parent / CLAIM).write_text(json.dumps(asdict(gone)))
    return place


def said(results: Path, width: int = 80) -> str:
    """What is shown of it, without colours."""
    console = Terminal(width=width)
    with console.capture() as captured:
        console.print(overview(statuses(results), results, console))
    return captured.get()


def test_where_runs_stand(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {run.directory.name: run for run in statuses(results)}
    assert [runs[f"seed{n}"].state for n in range(5)] == [
        *(State.DONE, State.FAILED, State.STOPPED, State.WAITING, State.WAITING)
    ]
    text = said(results)
    assert re.search(r"linear +1/5 1f 1s 2w", text)
    assert "5 runs: 1 done, 1 failed, 1 stopped, 2 waiting" in text
    assert max(map(len, text.splitlines())) <= 80

    assert main(["--records", str(results), "why", "seed1"]) == 0
    told = capsys.readouterr().out
    assert "reason: OSError: no room" in told
    assert "traceback.txt\n  Traceback\n" in told
    assert log_of(results, runs["seed0"].directory) is None
    with pytest.raises(ConfigError, match="names 5 runs"):
        main(["why", "linear", "--records", str(results)])

    running = runs["seed3"].directory
    running.mkdir()
    (running / "metrics.csv").write_text("epoch,train_loss,lr,train_seconds\n1,2,3,60\n2,2,3,80\n")
    with claimed(running / CLAIM, epochs=12):
        [now] = [run for run in statuses(results) if run.state is State.RUNNING]
        text = said(results)
    assert now.progress is not None
    assert (now.progress.epoch, now.progress.seconds) == (2, 70.0)
    assert re.search(r"2/12 +70 s +\d\d:\d\d:\d\d", text)


def test_a_summary_is_of_what_is_there_now(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever did it: a run that was finished after the launcher died counts."""
    place = results / "sweeps" / "today"
    assert [note.result for note in notes_now(place)] == ["skipped", "failed", *["not run"] * 3]
    runs = {run.directory.name: run for run in statuses(results)}
    record = runs["seed0"].record
    assert record is not None
    run_record.write(record, runs["seed2"].directory / "record.json")
    notes = notes_now(place)
    assert (notes[2].result, notes[2].reason) == ("done", "outside this sweep")
    assert notes[2].value is not None
    assert main(["summary", "--records", str(results)]) == 1
    assert "1 done, 1 skipped, 1 failed, 2 not run" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="no such sweep"):
        main(["summary", "yesterday", "--records", str(results)])


def test_clean_removes_leftovers_and_nothing_finished(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {run.directory.name: run.directory for run in statuses(results)}
    done, stopped = runs["seed0"], runs["seed2"]
    before = {path: path.read_bytes() for path in done.iterdir()}
    left = [done / ".x.tmp", done / "last.ckpt.damaged", done / "run.lock", stopped / "metrics.csv"]
    for path in left:
        path.write_text("half")
    (runs["seed1"] / "last.ckpt").write_text("goes on from here")
    assert main(["clean", "--records", str(results)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert sorted(listed[:-1]) == sorted(map(str, [*left, stopped / CLAIM]))
    assert all(path.exists() for path in left)

    with claimed(stopped / CLAIM):  # begun again meanwhile: nothing of it is touched
        assert main(["clean", "--yes", "--records", str(results)]) == 0
        assert (stopped / "metrics.csv").exists()
    assert main(["clean", "--yes", "--records", str(results)]) == 0
    assert {path: path.read_bytes() for path in done.iterdir()} == before
    assert not stopped.exists()
    assert (runs["seed1"] / "last.ckpt").exists()
    assert main(["clean", "--records", str(results)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_retry_runs_what_failed_again(cli: Cli, results: Path) -> None:
    done = cli("runs", "retry", "--records", str(results))
    assert done.returncode == 0, done.stderr
    assert "was failed: OSError: no room" in done.stdout
    assert "1 tried again, 0 failed" in done.stdout
    runs = {run.directory.name: run for run in statuses(results)}
    assert runs["seed1"].state is State.DONE
    again = cli("runs", "retry", "--records", str(results))
    assert "nothing has failed" in again.stdout


def test_a_wide_grid_is_broken_into_several() -> None:
    runs = [
        RunStatus(Path(m, d), m, d, State.WAITING)
        for m in ("lora", "ssf")
        for d in (f"vtab1k/set_number_{n}" for n in range(19))
    ]
    console = Terminal(width=80)
    with console.capture() as captured:
        console.print(overview(runs, Path(), console))
    text = captured.get()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("lora") > 1
    assert text.count("0/1 1w") == 38


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        main(["--records", str(tmp_path / "none")])


@pytest.mark.parametrize("typed", ["results", "results_dir=results"])
def test_a_folder_is_named_by_records(typed: str) -> None:
    with pytest.raises(ConfigError, match="--records results\n"):
        main([typed])


def test_a_damaged_plan_or_note_costs_only_itself(
    cli: Cli, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a full disk or a copy that was cut off leaves them."""
    (plan,) = results.rglob("sweep.json")
    whole = plan.read_text()
    plan.write_text(whole[:60])
    assert main(["--records", str(results)]) == 0
    assert f"left aside: {plan}: is damaged" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(RecordError, match="is damaged"):
        main(["summary", "--records", str(results)])
    plan.write_text(whole)
    job = plan.parent / "9"
    note = job / sweep.NOTE
    began = json.loads(note.read_text())["overrides"]
    note.write_text(note.read_text()[:20])
    assert not [one for one in sweep.last_notes(plan.parent).values() if one.place == "9"]
    sweep.write_note(job, began, sweep.Answer("died", False, "ended abruptly"), sweep.JOB)
    (told,) = [one for one in sweep.last_notes(plan.parent).values() if one.place == "9"]
    assert (told.result, told.overrides) == ("died", began)
    assert "its note is damaged" in told.reason
