"""A made-up project of any size, the same for the same seed; its people do not exist."""

import random
from datetime import date, timedelta

from ops.sandbox.project import Event, Field, Project, Record, Values

_GIVEN = ("Ada", "Björn", "Chloé", "Dmitri", "Eszter", "Fatima", "Grażyna", "Hồng", "Iñaki", "Jörg", "健", "Şule")
_FAMILY = ("Ångström", "O'Neill", "van der Berg", "Müller", "Nguyễn", "Pérez", "山田", "Иванова", "Łukasz", "Smith")
_WORDS = [
    "stable",
    "improved",
    "headache",
    "none",
    "reported;",
    "follow-up",
    "in",
    "two",
    "weeks",
    "“as",
    "agreed”",
    "naïve",
    "façade",
    "≥",
    "3",
    "µg/l",
    "😀",
]

_BASE = (
    ("record_id", "enrolment", "text", "Record ID", "", "", False),
    ("first_name", "enrolment", "text", "First name", "", "", True),
    ("family_name", "enrolment", "text", "Family name", "", "", True),
    ("born_on", "enrolment", "text", "Date of birth", "", "date_ymd", True),
    ("sex", "enrolment", "radio", "Sex", "1, Female | 2, Male | 3, Other", "", False),
    (
        "languages",
        "enrolment",
        "checkbox",
        "Languages",
        "en, English | fr, French | de, German | -9, Unknown",
        "",
        False,
    ),
    ("consented", "enrolment", "yesno", "Consented?", "", "", False),
    ("visit_on", "visit", "text", "Date of visit", "", "datetime_ymd", False),
    ("weight_kg", "visit", "text", "Weight (kg)", "", "number", False),
    ("pulse", "visit", "text", "Pulse (1/min)", "", "integer", False),
    ("well_being", "visit", "slider", "Well-being", "bad | good", "", False),
    ("visit_note", "visit", "notes", "Note", "", "", False),
    ("drug", "medication", "dropdown", "Drug", "1, Placebo | 2, Verum (10 mg) | 3, Verum (20 mg)", "", False),
    ("dose_mg", "medication", "text", "Dose (mg)", "", "number", False),
    ("side_effects", "medication", "checkbox", "Side effects", "1, Headache | 2, Nausea | 3, Other", "", False),
    ("event_note", "adverse_event", "notes", "What happened", "", "", False),
    ("serious", "adverse_event", "truefalse", "Serious?", "", "", False),
    ("consent_form", "adverse_event", "file", "Scan", "", "", False),
)
_EVENTS = (
    ("enrolment_arm_1", "Enrolment", ("enrolment",)),
    ("visit_1_arm_1", "Visit 1", ("visit", "medication")),
    ("visit_2_arm_1", "Visit 2", ("visit", "medication")),
    ("unscheduled_arm_1", "Unscheduled", ("adverse_event",)),
)


def make(*, seed: int = 1, records: int = 1_000, fields: int = 60) -> Project:
    """Return a longitudinal project with a repeating instrument and a repeating event.

    `fields` is the length of the dictionary; what the base does not fill is measurements.
    """
    chance = random.Random(seed)
    dictionary = [
        Field(name=n, form=form, kind=kind, label=label, choices=choices, validation=validation, identifier=pii)
        for n, form, kind, label, choices, validation, pii in _BASE
    ]
    last_visit = next(i for i, one in enumerate(dictionary) if one.form == "medication")
    extra = [
        Field(name=f"lab_{number:04d}", form="visit", label=f"Measurement {number}", validation="number")
        for number in range(1, max(0, fields - len(dictionary)) + 1)
    ]
    dictionary[last_visit:last_visit] = extra
    project = Project(
        title="Sandbox: a made-up trial",
        id=4242,
        fields=dictionary,
        forms={
            "enrolment": "Enrolment",
            "visit": "Visit",
            "medication": "Medication",
            "adverse_event": "Adverse event",
        },
        arms={1: "Arm 1"},
        events=[
            Event(unique_name=unique, name=name, forms=list(forms), id=number)
            for number, (unique, name, forms) in enumerate(_EVENTS, start=101)
        ],
        repeating_forms={("visit_1_arm_1", "medication"): "[drug]", ("visit_2_arm_1", "medication"): ""},
        repeating_events={"unscheduled_arm_1"},
        groups={"north": "North", "south": "South"},
        missing_codes=[("UNK", "Unknown"), ("NASK", "Not asked")],
    )
    for number in range(1, records + 1):
        project.records[str(number)] = _record(chance, [one.name for one in extra])
    return project


def _record(chance: random.Random, extra: list[str]) -> Record:
    record = Record(group=chance.choice(("north", "south", "")))
    enrolled = date(2024, 1, 1) + timedelta(days=chance.randrange(700))
    record.rows[("enrolment_arm_1", "", 0)] = {
        "first_name": chance.choice(_GIVEN),
        "family_name": chance.choice(_FAMILY),
        "born_on": (date(1930, 1, 1) + timedelta(days=chance.randrange(28_000))).isoformat(),
        "sex": chance.choice("123"),
        "consented": "1",
        f"languages___{chance.choice(('en', 'fr', 'de', '_9'))}": "1",
        "enrolment_complete": "2",
    }
    for visit in range(1, chance.choices((1, 2, 3), (2, 5, 3))[0]):
        event = f"visit_{visit}_arm_1"
        record.rows[(event, "", 0)] = _visit(chance, extra, enrolled + timedelta(days=30 * visit))
        for instance in range(1, chance.randrange(0, 4)):
            record.rows[(event, "medication", instance)] = {
                "drug": chance.choice("123"),
                "dose_mg": f"{chance.uniform(5, 20):.1f}",
                f"side_effects___{chance.choice('123')}": "1",
                "medication_complete": chance.choice("012"),
            }
    for instance in range(1, chance.choices((1, 2, 3), (8, 2, 1))[0]):
        record.rows[("unscheduled_arm_1", "", instance)] = {
            "event_note": " ".join(chance.choices(_WORDS, k=chance.randrange(3, 30))),
            "serious": chance.choice("01"),
            "consent_form": f"scan_{chance.randrange(1000)}.pdf",
            "adverse_event_complete": "2",
        }
    return record


def _visit(chance: random.Random, extra: list[str], day: date) -> Values:
    values: Values = {
        "visit_on": f"{day.isoformat()} {chance.randrange(8, 18):02d}:{chance.randrange(60):02d}",
        "weight_kg": chance.choice((f"{chance.uniform(45, 120):.1f}", "UNK")),
        "pulse": str(chance.randrange(50, 110)),
        "well_being": str(chance.randrange(101)),
        "visit_note": "\r\n".join(" ".join(chance.choices(_WORDS, k=8)) for _ in range(chance.randrange(3))),
        "visit_complete": chance.choice("012"),
    }
    values |= {name: f"{chance.gauss(100, 15):.2f}" for name in extra}
    return values
