import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from saving import make_marker

from orchestrator.checkpoint.layout import (
    MarkerFile,
    PayloadFile,
    Piece,
    SmallEntry,
    TensorEntry,
    attempt_of,
    payload_name,
    step_folder,
    step_of,
)
from orchestrator.checkpoint.marker import DataState, Marker, coverage_problems, gather_payloads
from orchestrator.errors import CheckpointError


def test_names_are_those_of_the_contract():
    assert step_folder(1000) == "step_00001000"
    assert payload_name(3, 12) == "rank_00003.attempt_012.safetensors"


@given(st.integers(0, 10**12))
def test_a_step_is_read_back_from_its_folder(step):
    assert step_of(step_folder(step)) == step


@given(st.integers(0, 10**6), st.integers(0, 10**4))
def test_an_attempt_is_read_back_from_a_payload_and_its_temporary(rank, attempt):
    name = payload_name(rank, attempt)
    assert attempt_of(name) == attempt_of(f".{name}.0a1b2c3d.tmp") == attempt


@pytest.mark.parametrize(
    "name", ["step_1", "step_00001000x", "astep_00001000", "step_000001000", "COMMITTED.json", ""]
)
def test_other_folders_are_no_checkpoints(name):
    assert step_of(name) is None


def full_marker() -> Marker:
    return make_marker(
        20,
        files=(
            MarkerFile("a.safetensors", 100, "0" * 32, {"rng/0": SmallEntry(64, 5, "U8", (5,))}),
            MarkerFile("b.safetensors", 80, "1" * 32, {}),
        ),
        tensors={
            "w": TensorEntry((2, 3), {"master": (Piece("a.safetensors", 8, 0, 4), Piece("b.safetensors", 8, 4, 2))}),
            "empty": TensorEntry((0, 3), {"master": ()}),
            "scalar": TensorEntry((), {"master": (Piece("b.safetensors", 16, 0, 1),)}),
        },
        loss_scaler={"scale": 65536.0},
        optimizer={"groups": [{"lr": 3e-4, "step": 20}]},
        schedule={"steps": 100},
        wandb_run_id="abc",
        versions={"torch": "2"},
        branch=2,
    )


def test_a_marker_is_read_back_equal():
    marker = full_marker()
    again = Marker.from_json(marker.to_json(), "here")
    assert again == marker
    assert again.to_json() == marker.to_json()
    assert again.data == DataState(20, (3, 5))
    assert again.total_bytes == 180


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_a_loss_that_is_no_number_is_null(loss):
    marker = dataclasses.replace(full_marker(), loss=loss)
    assert '"loss": null' in marker.to_json()
    assert Marker.from_json(marker.to_json(), "here").loss is None


def test_every_changed_character_of_a_marker_is_noticed():
    text = full_marker().to_json()
    for position in range(len(text)):
        changed = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
        with pytest.raises(CheckpointError, match="here is damaged"):
            Marker.from_json(changed, "here")


def test_every_truncation_of_a_marker_is_noticed():
    text = full_marker().to_json()
    for length in range(len(text)):
        with pytest.raises(CheckpointError, match="here is damaged"):
            Marker.from_json(text[:length], "here")


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "..", "a\\b", ""])
def test_a_marker_that_points_outside_its_folder_is_refused(name):
    marker = dataclasses.replace(full_marker(), files=(MarkerFile(name, 1, "0" * 32, {}),), tensors={})
    with pytest.raises(CheckpointError, match="bad file name"):
        Marker.from_json(marker.to_json(), "here")


def test_values_that_are_not_json_are_refused_when_written():
    with pytest.raises(CheckpointError, match="step 20 can't be written"):
        dataclasses.replace(full_marker(), optimizer={"lr": math.nan}).to_json()


def problems_of(*pieces: Piece, shape: tuple[int, ...] = (10,), kind: str = "master") -> list[str]:
    entry = TensorEntry(shape, {"master": (), kind: pieces} if kind != "master" else {kind: pieces})
    file = MarkerFile("f", 8 + 40, "0" * 32, {})
    return coverage_problems(make_marker(1, files=(file,), tensors={"w": entry}))


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([(8, 0, 10)], None),
        ([(28, 5, 5), (8, 0, 5)], None),
        ([(8, 0, 5), (28, 5, 0), (28, 5, 5)], None),
        ([], "elements 0 to 9 are missing"),
        ([(8, 0, 9)], "elements 9 to 9 are missing"),
        ([(8, 1, 9)], "elements 0 to 0 are missing"),
        ([(8, 0, 4), (28, 5, 5)], "elements 4 to 4 are missing"),
        ([(8, 0, 6), (28, 5, 5)], "from 5 on are held twice"),
        ([(8, 0, 10), (8, 0, 10)], "from 0 on are held twice"),
        ([(12, 0, 10)], "end beyond f"),
        ([(4, 0, 11)], "pieces end at 11, the tensor has 10 elements"),
    ],
)
def test_coverage(pieces, problem):
    found = problems_of(*(Piece("f", *numbers) for numbers in pieces))
    assert (found == []) if problem is None else (len(found) == 1 and problem in found[0])


def test_coverage_names_every_problem_at_once():
    assert len(problems_of(Piece("f", 8, 0, 10), kind="exp_avg")) == 1  # the master has nothing
    assert "is not a kind" in problems_of(Piece("f", 8, 0, 10), kind="velocity", shape=(0,))[0]
    assert "not among the marker's files" in problems_of(Piece("g", 8, 0, 10))[0]
    entry = TensorEntry((10,), {"exp_avg": ()})
    found = coverage_problems(make_marker(1, tensors={"w": entry, "v": TensorEntry((1,), {"master": ()})}))
    assert len(found) == 3


def payload(file: str, shape=(10,), start=0, count=5, small=()) -> PayloadFile:
    entry = TensorEntry(shape, {"master": (Piece(file, 8, start, count),)})
    return PayloadFile(file, 48, "0" * 32, {"w": entry}, {key: SmallEntry(8, 1, "U8", (1,)) for key in small})


def test_payloads_are_gathered_in_any_order():
    first, second = payload("a", small=["x"]), payload("b", start=5)
    assert gather_payloads([first, second]) == gather_payloads(iter([second, first]))
    files, tensors = gather_payloads([first, second])
    assert [file.file for file in files] == ["a", "b"]
    assert [piece.start for piece in tensors["w"].kinds["master"]] == [0, 5]


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (payload("a"), "the same file a"),
        (payload("b", shape=(2, 5)), "other ranks"),
        (payload("b", small=["x"]), "both hold 'x'"),
    ],
)
def test_contradicting_payloads_are_refused(second, problem):
    with pytest.raises(CheckpointError, match=problem):
        gather_payloads([payload("a", small=["x"]), second])


def test_a_payload_survives_json():
    value = payload("a", small=["x"])
    assert PayloadFile.from_dict(value.to_dict()) == value
