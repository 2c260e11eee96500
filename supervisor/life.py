"""The life of a worker as one total table of states and events.

Pure: no clock, no process, no logging. `process.Worker` feeds events in and carries the
actions out; nothing else decides what happens to a worker.
"""

from enum import Enum, auto


class State(Enum):
    """Where a worker stands between its fork and its reaping."""

    IDLE = auto()  # kept between two cycles
    RUNNING = auto()  # a cycle is at work
    LEAVING = auto()  # told to go, or its channel is closed: it should end by itself
    TERMINATING = auto()  # SIGTERM was sent
    KILLING = auto()  # SIGKILL was sent to the whole tree
    GONE = auto()  # reaped


class Event(Enum):
    """What can happen to a worker."""

    ASSIGN = auto()  # the loop has a cycle for it
    PROGRESS = auto()  # it says how far it is
    RESULT = auto()  # it says how its cycle ended
    GARBAGE = auto()  # it sent something that is no message, or one out of turn
    CLOSED = auto()  # its end of the channel is closed
    EXITED = auto()  # the kernel says that the process ended
    OVER_CEILING = auto()  # its tree holds more memory than the ceiling
    TIME_UP = auto()  # the cycle's time limit, or the drain's grace, is over
    GRACE_UP = auto()  # the patience with LEAVING, TERMINATING or KILLING is over
    DRAIN = auto()  # the supervisor stops: finish the batch, commit, return
    HURRY = auto()  # the supervisor was asked to stop a second time
    RETIRE = auto()  # a kept worker is not wanted any more


class Action(Enum):
    """What is done about it."""

    SEND_CYCLE = auto()
    ASK_TO_STOP = auto()  # tell the job that a drain was asked for
    NOTE = auto()  # keep what was said
    IGNORE = auto()
    SETTLE = auto()  # the cycle is over; the worker is kept or told to go
    LET_GO = auto()  # close the channel, which a waiting worker takes as its end
    TERMINATE = auto()  # SIGTERM to the worker's group
    KILL = auto()  # SIGKILL to the whole tree
    REAP = auto()
    REFUSE = auto()  # only a defect of the supervisor itself brings this pair about


S, E, A = State, Event, Action

# Rows are events, columns the states in the order of `State`. A cell that is not obvious
# has its reason behind the row.
_TABLE: dict[Event, tuple[Action, Action, Action, Action, Action, Action]] = {
    #               IDLE         RUNNING        LEAVING      TERMINATING  KILLING      GONE
    E.ASSIGN: (A.SEND_CYCLE, A.REFUSE, A.REFUSE, A.REFUSE, A.REFUSE, A.REFUSE),
    E.PROGRESS: (A.KILL, A.NOTE, A.IGNORE, A.IGNORE, A.IGNORE, A.IGNORE),
    # A result that comes after SIGTERM is kept: the work was done, whatever the limit says.
    E.RESULT: (A.KILL, A.SETTLE, A.KILL, A.NOTE, A.IGNORE, A.IGNORE),
    E.GARBAGE: (A.KILL, A.KILL, A.KILL, A.KILL, A.IGNORE, A.IGNORE),
    # The channel closes a moment before the process is a zombie, so this alone is no crime.
    E.CLOSED: (A.LET_GO, A.LET_GO, A.IGNORE, A.IGNORE, A.IGNORE, A.IGNORE),
    E.EXITED: (A.REAP, A.REAP, A.REAP, A.REAP, A.REAP, A.REFUSE),
    E.OVER_CEILING: (A.KILL, A.KILL, A.KILL, A.KILL, A.IGNORE, A.IGNORE),
    # Only RUNNING has a time limit; the others have a grace.
    E.TIME_UP: (A.IGNORE, A.TERMINATE, A.IGNORE, A.IGNORE, A.IGNORE, A.IGNORE),
    # KILLING again: the tree may have forked between the listing and the signal.
    E.GRACE_UP: (A.IGNORE, A.IGNORE, A.KILL, A.KILL, A.KILL, A.IGNORE),
    E.DRAIN: (A.LET_GO, A.ASK_TO_STOP, A.IGNORE, A.IGNORE, A.IGNORE, A.IGNORE),
    E.HURRY: (A.KILL, A.TERMINATE, A.KILL, A.KILL, A.IGNORE, A.IGNORE),
    E.RETIRE: (A.LET_GO, A.REFUSE, A.IGNORE, A.IGNORE, A.IGNORE, A.IGNORE),
}

_LEADS_TO = {
    Action.SEND_CYCLE: State.RUNNING,
    Action.LET_GO: State.LEAVING,
    Action.TERMINATE: State.TERMINATING,
    Action.KILL: State.KILLING,
    Action.REAP: State.GONE,
}

_COLUMN = {state: column for column, state in enumerate(State)}


def action(state: State, event: Event) -> Action:
    """Return what is done when `event` happens to a worker in `state`."""
    return _TABLE[event][_COLUMN[state]]


def following(state: State, event: Event, *, kept: bool = False) -> State:
    """Return the state after `event`; `kept` says whether a settled worker stays.

    Raises RuntimeError for a pair that only a defect of the supervisor can bring about.
    """
    what = action(state, event)
    if what is Action.REFUSE:
        raise RuntimeError(f"a worker that is {state.name} can't take {event.name}")
    if what is Action.SETTLE:
        return State.IDLE if kept else State.LEAVING
    return _LEADS_TO.get(what, state)
