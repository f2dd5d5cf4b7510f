import signal

import pytest

from orchestrator.observe.failure import (
    CURES,
    Cause,
    RankFailure,
    classify,
    digest,
    end_in_words,
    first_failure,
    how_it_ended,
    rank_ranges,
)

GLOO_CLOSED = "RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3621"
GLOO_TIMEOUT = (
    "RuntimeError: [gloo/transport/tcp/unbound_buffer.cc:119]"
    " Timed out waiting 600000ms for recv operation to complete"
)
NCCL_TIMEOUT = (
    "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=42, OpType=ALLREDUCE) ran for 600000 ms"
)
NCCL_REMOTE = (
    "torch.distributed.DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error"
)


def failure(rank=0, time_s=1.0, **changes) -> RankFailure:
    return RankFailure(**({"rank": rank, "node": f"node-{rank}", "time_s": time_s, "exit_code": 1} | changes))


def killed(rank=0, time_s=1.0, number=signal.SIGKILL, **changes) -> RankFailure:
    return failure(rank, time_s, exit_code=None, signal=int(number), **changes)


@pytest.mark.parametrize(
    ("failed", "cause"),
    [
        (
            failure(message="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
            Cause.out_of_memory,
        ),
        (
            failure(message="RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory"),
            Cause.out_of_memory,
        ),
        (failure(message="MemoryError"), Cause.out_of_memory),
        (
            failure(message="DataError: token shard 3 does not match its checksum in manifest.json"),
            Cause.data,
        ),
        (failure(message="IndexError: index out of range in self"), Cause.data),
        (failure(message="OSError: [Errno 28] No space left on device"), Cause.storage),
        (failure(message="PermissionError: [Errno 13] Permission denied: 'runs/x'"), Cause.storage),
        (failure(message="CheckpointError: step_00000050 is damaged"), Cause.storage),
        (failure(message="FileNotFoundError: manifest.json: no such file"), Cause.data),
        (failure(message=GLOO_CLOSED), Cause.communication),
        (failure(message=GLOO_TIMEOUT), Cause.communication),
        (failure(message=NCCL_REMOTE), Cause.communication),
        (killed(number=signal.SIGABRT, traceback_tail=NCCL_TIMEOUT), Cause.communication),
        (failure(message="RuntimeError: CUDA error: uncorrectable ECC error encountered"), Cause.node),
        (failure(message="ValueError: loss is nan"), Cause.user_code),
        (failure(message="AssertionError"), Cause.user_code),
        (failure(traceback_tail="Traceback ...\n  line 3\nKeyError: 'x'\n"), Cause.user_code),
        (failure(traceback_tail="Traceback ...\n  line 3\nMemoryError: no\n"), Cause.out_of_memory),
        (failure(), Cause.user_code),
        (killed(), Cause.node),
        (killed(traceback_tail="step 50 | saved checkpoint manifest.json\n"), Cause.node),
        (killed(number=signal.SIGTERM), Cause.node),
        (killed(number=signal.SIGBUS), Cause.storage),
        (killed(number=signal.SIGSEGV), Cause.user_code),
        (failure(exit_code=None), Cause.node),
        (killed(message="out of memory: the kernel killed it, as /proc/vmstat counts"), Cause.out_of_memory),
        (killed(message="from outside, and not for want of memory"), Cause.node),
        (killed(number=signal.SIGSEGV, message="it used memory that is not its own in ..."), Cause.user_code),
        (
            killed(number=signal.SIGABRT, message="a library gave up", traceback_tail=NCCL_TIMEOUT),
            Cause.communication,
        ),
        (failure(exit_code=None, is_hung=True, message="no progress in gloo, out of memory"), Cause.hang),
    ],
)
def test_the_class_of_cause(failed, cause):
    assert classify(failed) is cause


@pytest.mark.parametrize(
    ("failures", "first"),
    [
        ([failure(0, 1.0, message=GLOO_CLOSED), killed(1, 1.1)], 1),
        ([failure(0, 1.0, message=GLOO_CLOSED), failure(2, 1.2, message="ValueError: x")], 2),
        ([failure(0, 1.0, message=GLOO_TIMEOUT), failure(1, 1.1, message="MemoryError")], 1),
        ([failure(0, 1.0, message=GLOO_CLOSED), failure(1, 1.5, message=GLOO_TIMEOUT)], 1),
        ([failure(3, 1.0, message=GLOO_CLOSED), failure(1, 1.0, message=GLOO_CLOSED)], 1),
        ([failure(0, 1.3, message="ValueError: x"), killed(1, 1.2)], 1),
        ([failure(0, 1.0, message=GLOO_CLOSED), failure(1, 1.5, exit_code=None, is_hung=True)], 1),
        ([failure(0, 1.0, message=GLOO_CLOSED), failure(1, 9.0, exit_code=None)], 1),
        ([killed(4, 1.0, number=signal.SIGABRT, traceback_tail=NCCL_TIMEOUT), killed(5, 1.1)], 5),
    ],
)
def test_the_first_failing_rank_is_the_one_that_the_others_follow_from(failures, first):
    assert first_failure(failures).rank == first
    assert first_failure(failures[::-1]).rank == first


def test_no_failure_has_no_first():
    with pytest.raises(ValueError, match="no rank failed"):
        first_failure([])


def test_the_digest_of_512_ranks_fits_on_a_screen():
    tail = "\n".join(f'  File "train.py", line {line}' for line in range(20))
    oom = failure(3, 5.0, message="torch.OutOfMemoryError: CUDA out of memory.", traceback_tail=tail)
    others = [failure(rank, 5.1, message=GLOO_CLOSED) for rank in range(512) if rank not in (3, 7)]
    text = digest(
        [*others, oom, killed(7, 5.2)],
        done="restarted 3 times from step 50; it failed at step 51 each time",
        next_steps=("phalanx logs runs/a",),
    )
    assert text == "\n".join(
        [
            "rank 3 on node-3 failed first: it exited with code 1; cause: out of memory",
            '      File "train.py", line 16',
            '      File "train.py", line 17',
            '      File "train.py", line 18',
            '      File "train.py", line 19',
            "    torch.OutOfMemoryError: CUDA out of memory.",
            "511 other ranks failed after it: 510 communication, 1 node (ranks 0-2, 4-511)",
            "done: restarted 3 times from step 50; it failed at step 51 each time",
            *(f"next: {cure}" for cure in CURES[Cause.out_of_memory]),
            "next: phalanx logs runs/a",
        ]
    )


def test_the_digest_of_one_silent_rank():
    lines = digest([killed(1)]).splitlines()
    assert lines[:2] == [
        "rank 1 on node-1 failed first: it was killed by signal 9 (SIGKILL); cause: node",
        "    (it printed nothing)",
    ]
    assert all(line.startswith("next: ") for line in lines[2:])


def test_the_digest_of_a_hang_ends_in_the_innermost_frame():
    stack = ('  File "shards.py", line 127 in rows', '  File "batches.py", line 9 in _read_ahead')
    hung = failure(1, exit_code=None, is_hung=True, message="no progress for 9.0 s in waiting for data", stack=stack)
    assert digest([hung]).splitlines()[:4] == [
        "rank 1 on node-1 failed first: it made no progress; cause: hang",
        '      File "batches.py", line 9 in _read_ahead',
        '      File "shards.py", line 127 in rows',
        "    no progress for 9.0 s in waiting for data",
    ]


@pytest.mark.parametrize(
    ("number", "stack", "words"),
    [
        (None, (), ""),
        (signal.SIGKILL, (), "from outside, and not for want of memory"),
        (
            signal.SIGSEGV,
            ('  File "a.py", line 3 in f',),
            'it used memory that is not its own in File "a.py", line 3 in f',
        ),
        (signal.SIGUSR1, (), "a signal that nothing in phalanx sends"),
    ],
)
def test_a_rank_that_said_nothing_still_has_an_end(number, stack, words):
    assert end_in_words(number, stack) == words


def test_every_class_has_a_cure():
    assert CURES.keys() == set(Cause)
    assert all(CURES.values())


def test_ends_in_words():
    assert how_it_ended(killed(number=signal.SIGRTMIN + 1)).startswith("was killed by signal 35")
    assert how_it_ended(failure(exit_code=None)) == "was lost"
    assert rank_ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
