import io
import os
import re
from contextlib import suppress

from plans import plan
from step_rows import row

from orchestrator.observe.console import Console
from orchestrator.observe.goodput import GoodputLedger
from orchestrator.observe.wording import EndFacts, StartFacts

FACTS = StartFacts(run_folder="runs/demo", nodes={"here": 8}, warnings=["8 workers share 2 CPU cores"])
END = EndFacts(
    run_id="demo",
    run_folder="runs/demo",
    is_finished=True,
    step=40,
    steps=40,
    tokens=1000,
    elapsed_s=2.0,
    loss=2.5,
    restarts=1,
    downtime_s=0.5,
    checkpoint="runs/demo/checkpoints/step_00000040",
    goodput=GoodputLedger().closed(),
)
DIED = {"t": 1.0, "event": "rank_died", "attempt": 1, "step": 27, "rank": 1, "node": "here", "signal": 9}
AGAIN = {"t": 2.0, "event": "attempt_started", "attempt": 2, "step": None, "resume_step": 21, "steps_lost": 6}


def a_whole_run(console: Console) -> None:
    console.start(plan(steps=40), FACTS, memory_limit_bytes=None)
    for step in range(1, 28):
        console.step(row(step))
    console.event(DIED)
    console.event(AGAIN)
    for step in range(22, 41):
        console.step(row(step, attempt=2, eval_loss=3.0 if step == 40 else None))
    console.warn("W&B is slow")
    console.end(END)


def test_plain_lines_where_no_terminal_is():
    stream = io.StringIO()
    a_whole_run(Console(stream, is_terminal=False, every_steps=10))
    text = stream.getvalue()
    assert "\x1b" not in text
    lines = text.splitlines()
    shown = [int(found.group(1)) for line in lines if (found := re.match(r"step (\d+)/40 ", line))]
    assert shown == [1, 10, 20, 22, 30, 40]
    assert [line for line in lines if line.startswith("==")] == ["== phalanx", "== done"]
    died = lines.index("rank 1 on here was killed by signal 9 (SIGKILL) after step 27")
    assert lines[died + 1] == "restarting as attempt 2 from step 21, 6 steps are repeated"
    assert "warning     8 workers share 2 CPU cores" in lines
    assert "evaluation at step 40: loss 3.0000" in lines
    assert "warning: W&B is slow" in lines


def test_a_training_line_speaks_of_the_steps_since_the_last_one_of_its_attempt():
    stream = io.StringIO()
    console = Console(stream, is_terminal=False, every_steps=2)
    console.start(plan(steps=8), FACTS)
    for step, step_s in ((1, 1.0), (2, 1.0), (3, 1.0), (4, 3.0), (5, 9.0)):
        console.step(row(step, tokens=1000, tokens_per_s=1000 / step_s, step_s=step_s))
    console.step(row(6, attempt=2, tokens=1000, tokens_per_s=2000.0, step_s=0.5))
    speeds = re.findall(r"\| ([\d,]+) tok/s", stream.getvalue())
    assert speeds == ["1,000", "1,000", "500", "2,000"]


def test_the_time_left_follows_the_steps_of_this_attempt():
    stream = io.StringIO()
    console = Console(stream, is_terminal=False, every_steps=1)
    console.start(plan(steps=100), FACTS)
    console.step(row(50, step_s=100.0))
    console.step(row(40, attempt=2, step_s=0.5))
    assert stream.getvalue().splitlines()[-1].endswith("eta 30s")


def test_a_terminal_gets_the_same_words_in_colour_and_a_bar_that_goes_away():
    stream = io.StringIO()
    a_whole_run(Console(stream, is_terminal=True, every_steps=10))
    coloured = stream.getvalue()
    assert "\x1b[" in coloured
    words = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", coloured)
    assert "step 22/40 55.0% | loss 3.4210" in words
    assert "rank 1 on here was killed by signal 9 (SIGKILL) after step 27" in words
    assert "phalanx generate runs/demo" in words
    assert "\x1b[?25h" in coloured  # the cursor is back


def test_markup_in_a_message_is_only_text():
    stream = io.StringIO()
    Console(stream, is_terminal=True).event(DIED | {"message": "KeyError: [/red] [bold]"})
    assert "KeyError: [/red] [bold]" in stream.getvalue()


def test_a_failure_is_shown_whole():
    stream = io.StringIO()
    Console(stream, is_terminal=False).failure("rank 3 failed first\nnext: mend it")
    assert stream.getvalue().splitlines() == ["== the run failed", "rank 3 failed first", "next: mend it"]


def test_a_reader_that_went_away_does_not_end_the_run():
    for is_terminal in (False, True):
        reading, writing = os.pipe()
        os.close(reading)
        stream = os.fdopen(writing, "w", buffering=1)
        a_whole_run(Console(stream, is_terminal))
        with suppress(BrokenPipeError):
            stream.close()
