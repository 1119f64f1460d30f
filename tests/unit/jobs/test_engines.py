"""Engines: every task is done or given up with a reason, whatever happens to the processes."""

import time
from functools import partial
from pathlib import Path

import pytest

import tasks
from nearfar.jobs import engines
from nearfar.jobs.engines import in_processes, in_turn, workers


def tried(folder):
    return {int(path.name): len(path.read_text()) for path in Path(folder).iterdir()}


@pytest.mark.process
def test_tasks_that_kill_their_process_or_raise_are_given_up_and_the_rest_is_done(tmp_path):
    make = partial(tasks.make, str(tmp_path))
    answers = {one.task: one for one in in_processes(make, [0, 1, 3, 4, 5], [{"PLACE": "a"}, {"PLACE": "b"}], tries=2)}
    assert sorted(answers) == [0, 1, 3, 4, 5]
    assert {task: one.content["square"] for task, one in answers.items() if not one.fault} == {0: 0, 1: 1, 5: 25}
    assert {one.content["place"] for one in answers.values() if one.content} <= {"a", "b"}
    assert "ended its process with signal SIGKILL" in answers[3].fault
    assert answers[4].fault == "ZeroDivisionError: nothing to divide by"
    assert tried(tmp_path) == {0: 1, 1: 1, 3: 2, 4: 2, 5: 2}


@pytest.mark.process
def test_a_worker_that_refuses_is_asked_once():
    (answer,) = in_processes(tasks.refuse, [0], [{}])
    assert (answer.refused, answer.fault) == (True, "this worker is of another kind")


@pytest.mark.process
def test_workers_end_with_their_driver(tmp_path):
    began = time.monotonic()
    running = in_processes(partial(tasks.make, str(tmp_path)), [6, 0], [{}, {}])
    assert next(running).task == 0
    while not (tmp_path / "6").exists():
        assert time.monotonic() - began < 50
        time.sleep(0.01)
    running.close()
    assert time.monotonic() - began < 55
    assert tried(tmp_path) == {0: 1, 6: 1}


def test_tasks_in_turn_are_tried_as_often(tmp_path):
    answers = list(in_turn(partial(tasks.make, str(tmp_path)), [0, 4], tries=3))
    assert [(one.task, one.fault) for one in answers] == [(0, ""), (4, "ZeroDivisionError: nothing to divide by")]
    assert tried(tmp_path) == {0: 1, 4: 3}


def test_devices_and_cores_are_dealt_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engines.os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers(None) == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "2"},
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in workers(3)] == ["2", "5", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert workers(None) == [{}]
    assert workers(2) == [{"OMP_NUM_THREADS": "4"}] * 2
