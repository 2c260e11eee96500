"""The table of a worker's life: total, and without a way back from the end."""

import itertools

import pytest

from supervisor.life import _TABLE, Action, Event, State, action, following

PAIRS = list(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_every_pair_has_an_action_that_leads_to_a_state(state, event):
    what = action(state, event)
    if what is Action.REFUSE:
        with pytest.raises(RuntimeError, match=state.name):
            following(state, event)
    else:
        assert isinstance(following(state, event), State)


def test_rows_and_columns_are_complete():
    assert set(_TABLE) == set(Event)
    assert {len(row) for row in _TABLE.values()} == {len(State)}


@pytest.mark.parametrize("event", [event for event in Event if action(State.GONE, event) is not Action.REFUSE])
def test_nothing_comes_back_from_gone(event):
    assert following(State.GONE, event) is State.GONE


@pytest.mark.parametrize("state", [state for state in State if state is not State.GONE])
def test_an_exit_ends_every_life(state):
    assert following(state, Event.EXITED) is State.GONE


@pytest.mark.parametrize("state", [State.IDLE, State.RUNNING, State.LEAVING, State.TERMINATING])
def test_the_ceiling_holds_in_every_state(state):
    assert following(state, Event.OVER_CEILING) is State.KILLING


def test_patience_ends_in_a_kill():
    for state in (State.LEAVING, State.TERMINATING, State.KILLING):
        assert following(state, Event.GRACE_UP) is State.KILLING


def test_a_settled_worker_is_kept_or_leaves():
    assert following(State.RUNNING, Event.RESULT, kept=True) is State.IDLE
    assert following(State.RUNNING, Event.RESULT, kept=False) is State.LEAVING


def test_every_state_can_be_reached_from_idle():
    reached = {State.IDLE}
    while True:
        new = {
            following(state, event, kept=kept)
            for state in reached
            for event in Event
            for kept in (True, False)
            if action(state, event) is not Action.REFUSE
        }
        if new <= reached:
            break
        reached |= new
    assert reached == set(State)
