import math

import pytest
from plans import plan
from step_rows import row

from orchestrator.observe.goodput import Goodput, Spent
from orchestrator.observe.ledger import EventName
from orchestrator.observe.wording import (
    EndFacts,
    StartFacts,
    end_lines,
    eta_s,
    evaluation_line,
    event_line,
    since_last_line,
    summary_lines,
    training_line,
)
from orchestrator.spec import ResumePoint


def test_the_summary():
    facts = StartFacts(
        run_folder="runs/demo",
        nodes={"node-a": 4, "node-b": 4},
        resume=ResumePoint(step=50, checkpoint="runs/demo/checkpoints/step_00000050"),
        tracking="https://wandb.ai/me/phalanx/runs/demo",
        warnings=["8 workers share 2 CPU cores"],
    )
    assert "\n".join(summary_lines(plan(), facts)) == (
        "run         demo\n"
        "model       tiny: 1.20 M parameters, 8.00 MFLOPs per token\n"
        "tokens      246 M in 5,000 steps: 204.8 per parameter\n"
        "batch       96 samples = 4 per micro-batch x 8 workers x 3 micro-steps; 49,152 tokens a step\n"
        "devices     8 x cpu on node-a (4 workers), node-b (4 workers)\n"
        "engine      ZeRO stage 2, bf16\n"
        "start       after step 50 of 5,000, from runs/demo/checkpoints/step_00000050\n"
        "run folder  runs/demo\n"
        "metrics     runs/demo/metrics.jsonl\n"
        "W&B         https://wandb.ai/me/phalanx/runs/demo\n"
        "warning     8 workers share 2 CPU cores"
    )


def test_the_summary_of_a_fresh_run_on_one_worker_with_padding():
    lines = summary_lines(
        plan(world_size=1, micro_batch_size=5),
        StartFacts(run_folder="r", nodes={"n": 1}, device_name="NVIDIA H100"),
    )
    assert "devices     1 x NVIDIA H100 on n (1 worker)" in lines
    assert "start       from the seeded initial weights" in lines
    batch = "96 samples = 5 per micro-batch x 1 worker x 20 micro-steps, 4 padding rows of zero weight left out"
    assert f"batch       {batch}; 49,152 tokens a step" in lines


def test_a_line_tells_the_speed_since_the_line_before():
    """On a busy machine a step may take half or twice as long as the next."""
    rows = [
        row(9, tokens=1000, tokens_per_s=2000.0, step_s=0.5, data_s=0.1, mfu=0.4),
        row(10, tokens=1000, tokens_per_s=500.0, step_s=2.0, data_s=0.4, mfu=0.1),
    ]
    shown = since_last_line(rows)
    assert (shown.step, shown.loss) == (10, rows[1].loss)
    assert (shown.tokens_per_s, shown.step_s, shown.data_s) == (800.0, 2.5, 0.5)
    assert shown.mfu == pytest.approx(0.16)
    assert since_last_line(rows[1:]) == rows[1]
    assert since_last_line([row(1, step_s=0.0)]) == row(1, step_s=0.0)


def test_the_training_line():
    full = row(120, world_size=8, mfu=0.412, memory_bytes=int(61.3 * 2**30))
    assert training_line(full, steps=5000, eta_s=8040.0, memory_limit_bytes=80 * 2**30) == (
        "step 120/5000 2.4% | loss 3.4210 | gnorm 0.91 | lr 2.9e-4 | 512,340 tok/s (64,042/worker)"
        " | mfu 41.2% | mem 61.3/80G 77% | data 1.2% | eta 2h14m"
    )
    assert training_line(row(1, world_size=1, memory_bytes=2**30), steps=10, eta_s=None) == (
        "step 1/10 10.0% | loss 3.4210 | gnorm 0.91 | lr 2.9e-4 | 512,340 tok/s | mem 1.00 GiB | data 1.2%"
    )


def test_a_diverged_step_is_shown_as_it_is():
    line = training_line(row(1, loss=math.nan, grad_norm=math.inf, step_s=0.0), steps=2, eta_s=0.0)
    assert line.startswith("step 1/2 50.0% | loss nan | gnorm inf |")
    assert line.endswith("data 0.0% | eta 0.00s")


def test_time_left_is_the_median_step_s():
    assert eta_s([1.0, 1.0, 60.0], 10) == 10.0
    assert eta_s([], 10) is None


def test_the_evaluation_line():
    assert evaluation_line(row(1)) is None
    whole = row(100, eval_loss=3.0, eval_perplexity=20.0855, eval_bits_per_byte=1.25)
    assert evaluation_line(whole) == "evaluation at step 100: loss 3.0000 | perplexity 20.09 | 1.2500 bits per byte"
    assert evaluation_line(row(100, eval_loss=3.0)) == "evaluation at step 100: loss 3.0000"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"event": "rank_died", "rank": 1, "node": "HOST", "signal": 9},
            "rank 1 on HOST was killed by signal 9 (SIGKILL) after step 57",
        ),
        (
            {
                "event": "rank_died",
                "rank": 0,
                "node": "HOST",
                "signal": None,
                "exit_code": 1,
                "message": "MemoryError",
            },
            "rank 0 on HOST exited with code 1 after step 57: MemoryError",
        ),
        ({"event": "rank_died", "step": None}, "rank ? on ? died"),
        ({"event": "attempt_started", "attempt": 1, "resume_step": 0}, None),
        (
            {"event": "attempt_started", "resume_step": 50, "steps_lost": 7},
            "restarting as attempt 2 from step 50, 7 steps are repeated",
        ),
        (
            {"event": "attempt_started", "resume_step": 56, "steps_lost": 1},
            "restarting as attempt 2 from step 56, 1 step is repeated",
        ),
        ({"event": "attempt_started", "resume_step": 0}, "restarting as attempt 2 from the initial weights"),
        (
            {"event": "recovered", "downtime_s": 0.41, "steps_lost": 7, "source": "disk"},
            "training again after 0.41s (7 steps repeated, restored from disk)",
        ),
        (
            {
                "event": "checkpoint_committed",
                "path": "runs/a/checkpoints/step_00000057",
                "bytes": 2**20,
                "seconds": 0.5,
            },
            "checkpoint at step 57: runs/a/checkpoints/step_00000057 1.00 MiB in 0.50s",
        ),
        (
            {"event": "checkpoint_failed", "message": "disk full"},
            "the checkpoint at step 57 failed: disk full",
        ),
        ({"event": "node_lost", "node": "b"}, "node b was lost"),
        ({"event": "node_lost", "node": "b", "why": "it is slow"}, "node b is left: it is slow"),
        (
            {"event": "hang_detected", "rank": 3, "node": "b", "message": "no progress for 9.0 s in the update"},
            "rank 3 on b hangs: no progress for 9.0 s in the update",
        ),
        (
            {"event": "straggler", "rank": 3, "node": "b", "message": "takes 2 times as long"},
            "rank 3 on b is slow: it takes 2 times as long",
        ),
        ({"event": "anomaly", "message": "the loss is nan"}, "step 57: the loss is nan"),
        (
            {"event": "rollback", "to_step": 40, "windows": [40], "branch": 1},
            "going back to step 40, without the data of 1 window (40): branch 1",
        ),
        (
            {"event": "rollback", "to_step": 40, "windows": list(range(40, 57)), "branch": 2},
            "going back to step 40, without the data of 17 windows: branch 2",
        ),
        ({"event": "rollback", "to_step": 56, "windows": [], "branch": 3}, "going back to step 56: branch 3"),
        (
            {"event": "checkpoint_rejected", "path": "c/step_00000050", "message": "left behind"},
            "checkpoint c/step_00000050 was set aside: left behind",
        ),
        ({"event": "run_started"}, None),
    ],
)
def test_events_in_plain_words(fields, words):
    assert event_line({"t": 1.0, "attempt": 2, "step": 57} | fields) == words


@pytest.mark.parametrize("name", list(EventName))
def test_no_event_is_too_bare_to_be_told(name):
    event_line({"t": 1.0, "event": str(name), "attempt": 2, "step": None})


GOODPUT = Goodput(
    dict.fromkeys(Spent, 0)
    | {Spent.productive: 470_000_000, Spent.start: 6_650_000, Spent.recovery: 3_250_000, Spent.idle: 100_000},
    begun_us=0,
    ended_us=480_000_000,
)


def end(**changes) -> list[str]:
    facts = {
        "run_id": "demo",
        "run_folder": "runs/demo",
        "is_finished": True,
        "step": 5000,
        "steps": 5000,
        "tokens": 245_760_000,
        "elapsed_s": 480.0,
        "loss": 2.5,
        "restarts": 2,
        "downtime_s": 3.25,
        "checkpoint": "runs/demo/checkpoints/step_00005000",
        "goodput": GOODPUT,
    }
    return end_lines(EndFacts(**(facts | changes)))


def test_the_end():
    assert "\n".join(end()) == (
        "run         demo finished\n"
        "tokens      246 M in 8m00s: 512,000 tok/s\n"
        "final loss  2.5000\n"
        "restarts    2, costing 3.25s\n"
        "goodput     97.9% of 8m00s; start 6.65s, recovery 3.25s\n"
        "checkpoint  runs/demo/checkpoints/step_00005000\n"
        "run folder  runs/demo\n"
        "next        phalanx generate runs/demo\n"
        "next        phalanx evaluate runs/demo\n"
        "next        phalanx export runs/demo"
    )


def test_the_end_of_a_run_that_stopped_early_names_the_command_that_goes_on():
    lines = end(
        is_finished=False,
        step=0,
        loss=None,
        restarts=0,
        checkpoint=None,
        tokens=0,
        elapsed_s=0.0,
        resume_command="phalanx train experiment=demo",
    )
    assert lines[0] == "run         demo stopped at step 0 of 5,000"
    assert "final loss  none: no step was done" in lines
    assert lines[-1] == "next        phalanx train experiment=demo"
