"""A project into a table by PyCap and plain dicts: it tells how far it is, and stops between two batches when asked.

    SUPERVISOR_JOB=ops.examples.pycap_dicts:sync ./ops/start once

Needs PyCap: `.venv/bin/pip install PyCap`.
"""

import contextlib
import json
import os
import sqlite3
from typing import Any

import redcap

BATCH_RECORDS = 200


def sync(cycle: Any) -> dict[str, int]:
    """Bring the table up to date; `cycle` is what the supervisor gives a job that takes an argument."""
    project = redcap.Project(os.environ["REDCAP_API_URL"], os.environ["REDCAP_API_TOKEN"])
    id_field = project.def_field
    ids = sorted({row[id_field] for row in project.export_records(format_type="json", fields=[id_field])})
    written = 0
    with contextlib.closing(sqlite3.connect(os.environ["DATABASE"])) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS record_rows (record TEXT, row TEXT)")
        for begin in range(0, len(ids), BATCH_RECORDS):
            batch = ids[begin : begin + BATCH_RECORDS]
            rows = project.export_records(format_type="json", records=batch)
            with connection:  # the batch is in the table, or it is not
                connection.executemany("DELETE FROM record_rows WHERE record = ?", ((one,) for one in batch))
                pairs = ((row[id_field], json.dumps(row)) for row in rows)
                connection.executemany("INSERT INTO record_rows VALUES (?, ?)", pairs)
            written += len(rows)
            cycle.progress(begin + len(batch), len(ids), "records")
            if cycle.stopping:
                break
    return {"records": len(ids), "rows": written}
