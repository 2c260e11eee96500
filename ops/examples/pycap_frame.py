"""A project into a table by PyCap and pandas, as many write it. It knows nothing of any supervisor.

    SUPERVISOR_JOB=ops.examples.pycap_frame:sync ./ops/start once

Needs PyCap and pandas: `.venv/bin/pip install PyCap pandas`.
"""

import contextlib
import os
import sqlite3

import redcap


def sync() -> dict[str, int]:
    """Replace the table by what the server has; return what goes into the report."""
    project = redcap.Project(os.environ["REDCAP_API_URL"], os.environ["REDCAP_API_TOKEN"])
    text = {"dtype": str, "keep_default_na": False}  # "007" stays "007", and "NA" is somebody's initials
    frame = project.export_records(format_type="df", df_kwargs=text).reset_index()
    with contextlib.closing(sqlite3.connect(os.environ["DATABASE"])) as connection:
        frame.to_sql("records", connection, if_exists="replace", index=False)
    return {"rows": len(frame), "columns": len(frame.columns)}
