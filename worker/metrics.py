"""What the summaries of a sync come to over the cycles, as metrics; the supervisor writes them down."""

# name: what it is, the label, and the key of the summary: a number's, that of a dict by label, or a key for each label.
METRICS: dict[str, tuple[str, str, str | tuple[str, ...]]] = {
    "redcap_sync_records_total": ("Records that were read from the server and written.", "", "records"),
    "redcap_sync_rows_total": (
        "Rows of records by what the sync did with them.",
        "change",
        ("inserted", "updated", "unchanged", "deleted"),
    ),
    "redcap_sync_received_bytes_total": ("Bytes of the server's answers, after decompression.", "", "bytes_received"),
    "redcap_sync_requests_total": ("Requests to the server, repeated ones too.", "", "requests"),
    "redcap_sync_retries_total": ("Requests that were made once more after a fault.", "", "retries"),
    "redcap_sync_answers_total": ("The server's answers by their HTTP status.", "status", "answers"),
}
