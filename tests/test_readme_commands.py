"""Every command of the README is run, as it stands there, with the names of its examples put in place."""

import os
import re
import shutil
import subprocess
import textwrap

import psycopg
import pytest

from ops.bench.__main__ import PROOFS
from ops.sandbox import synthetic
from ops.sandbox.api import Api
from ops.sandbox.server import running
from tests.conftest import ROOT
from tests.sandbox import project_xml
from tests.sync import postgres

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict.fromkeys(re.findall(r"^```(?:sh|python|sql)\n.*?^```$", README, re.MULTILINE | re.DOTALL))
SPANS = sorted(
    set(
        re.findall(
            r"`((?:redcap-sync |\./ops/|\.venv/|pip |[A-Z_]+=\S+ [A-Z_]+=\S+ \./)[^`]*)`", re.sub(r"\s+", " ", README)
        )
    )
)
TOKEN = "0123456789ABCDEF" * 2


def block(containing):
    (found,) = (one for one in BLOCKS if containing in one)
    BLOCKS[found] = containing  # that it was taken
    return found.partition("\n")[2].removesuffix("```")


FIVE_MINUTES = block("createdb redcap")
QUERIES = block("SELECT record_id, event, weight_kg")
LOOKING = block("./ops/start status ")
SANDBOX = block("./ops/start sandbox my-project.xml")
OWN_FUNCTION = block("export SUPERVISOR_JOB=my_module")
EXAMPLES = block("ops.examples.pycap_frame:sync")
EXAMPLE_CODE = block("def sync() -> dict[str, int]:")
HANDLER = block("def handle(record_id")
ISOLATE = block("from supervisor import isolate")
DEMO = block("./ops/start --demo")
TESTS = block("./ops/test")

# Commands that go on until they are told to stop are stopped once they said what a user waits for.
PREAMBLE = """\
set -eu
until_it_says() {
    sign=$1; shift
    "$@" > "$HOME/said" 2>&1 & pid=$!
    until grep -q "$sign" "$HOME/said"; do
        kill -0 $pid || { cat "$HOME/said"; return 1; }
        sleep 0.05
    done
    kill -TERM $pid
    wait $pid
}
"""


class Reader:
    """Somebody who types what the README says, in a home of his own."""

    def __init__(self, home, url):
        home.mkdir()
        self.home = home
        self.url = url
        (home / ".redcap-token").write_text(TOKEN + "\n")
        (home / ".redcap-token").chmod(0o600)
        (home / "my_module.py").write_text("def my_function():\n    return {'things': 3}\n")
        self.env = {
            "HOME": str(home),
            "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{home}:{ROOT}",
            "REDCAP_MAX_RATE": "600",
            "LANG": "C.UTF-8",
        }

    def type(self, script, **variables):
        """Run a script; return what it printed."""
        for example, real in {
            "https://redcap.example.org/api/": self.url,
            "my.db": str(self.home / "my.db"),
            "redcap.env": str(self.home / "redcap.env"),
            "./ops/start run": """until_it_says '"event":"cycle"' ./ops/start run""",
            "./ops/start sandbox": "until_it_says 'token ' ./ops/start sandbox --port 0",
            "my-project.xml": str(self.home / "my-project.xml"),
        }.items():
            script = script.replace(example, real)
        done = subprocess.run(
            ["bash", "-c", PREAMBLE + script],
            cwd=ROOT,
            env=self.env | variables,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == 0, (script, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture
def reader(tmp_path):
    with running(Api(synthetic.make(seed=11, records=60, fields=24), TOKEN)) as server:
        yield Reader(tmp_path / "home", server.url)


@pytest.fixture
def settled(reader):
    """The reader, with a project to sync."""
    reader.env |= {"REDCAP_API_URL": reader.url, "REDCAP_API_TOKEN_FILE": str(reader.home / ".redcap-token")}
    return reader


def test_five_minutes_to_postgresql(reader):
    with postgres.running() as server:
        programs = server.programs
        reader.env |= {"PGHOST": server.home, "PGUSER": "postgres", "PATH": f"{reader.env['PATH']}:{programs}"}
        said = reader.type(FIVE_MINUTES)
        assert "✓ sink            PostgreSQL" in said
        assert "| visit" in said.replace("public |", "|")
        with psycopg.connect(f"host={server.home} user=postgres dbname=redcap") as connection:
            records = "SELECT COUNT(DISTINCT record_id) FROM records"
            assert connection.execute(records).fetchone() == (60,)
            for statement in QUERIES.split(";"):
                if statement.strip():
                    connection.execute(statement)


def test_looking_at_it_and_a_file_of_settings(settled):
    settled.type("./ops/start once")
    said = settled.type(LOOKING.replace("status ", "status || [ $? = 3 ] "))
    assert "not running" in said
    assert "report.html: 1 cycle" in said
    assert "SUPERVISOR_INTERVAL" in said
    settled.type(
        "./ops/start config --example > redcap.env\nchmod 600 redcap.env\n./ops/start once --env-file redcap.env"
    )


def test_a_server_to_try_it_on(reader):
    (reader.home / "my-project.xml").write_text(project_xml.document([project_xml.item("record_id", "form")], []))
    reader.type(SANDBOX)


def test_a_function_of_ones_own(settled):
    assert '"things":3' in settled.type(OWN_FUNCTION)
    said = settled.type(EXAMPLES)
    assert said.count('"outcome":"ok"') == 2


def test_the_example_in_the_text_is_the_example_in_the_file():
    text = textwrap.dedent(EXAMPLE_CODE)
    strip = lambda code: [line.partition("  #")[0] for line in code.splitlines() if line and '"""' not in line]  # noqa: E731
    file = (ROOT / "ops/examples/pycap_frame.py").read_text()
    assert strip(text) == strip(file[file.index("def sync") :])


def test_a_handler_of_ones_own(settled):
    (settled.home / "my_module.py").write_text(HANDLER)
    said = settled.type("./ops/start once --full", SYNC_HANDLER="my_module:handle")
    assert '"outcome":"ok"' in said


def test_one_call_in_a_process_of_its_own(reader):
    program = reader.home / "program.py"
    leaky = "def leaky(path):\n    return len(path)\n\n"
    end = "\nif __name__ == '__main__':\n    print(result, report['outcome'], frame_of('x'))\n"
    code = ISOLATE
    program.write_text(
        leaky + code.replace("result, report =", "if __name__ == '__main__':\n    result, report =") + end
    )
    assert "10 ok None" in reader.type(f"python {program}")


def test_the_demo_and_the_tests():
    assert DEMO.strip() == "./ops/start --demo"  # test_demo.py runs it
    command = TESTS.strip()
    done = subprocess.run(
        [command, "-q", "tests/unit/test_schedule.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


# What stands in the text, and how it is run: by a reader, with these words for what stands for something.
WORDS = {"FILE": "$HOME/page.html", "CODE": "CeilingExceeded", "[": "", "]": ""}
ELSEWHERE = {
    "./ops/start bench NAME": "each has a test below, or a reason",
    "./ops/start …": "an abbreviation",
    "redcap-sync …": "an abbreviation",
    ".venv/bin/pip install …": "test_a_function_of_ones_own",
    "MODEL_EXAMPLES=2000 KILLS=500 ./ops/test tests/sync/test_model.py": "the same with fewer is a part of this suite",
}


@pytest.mark.parametrize("span", [one for one in SPANS if one not in ELSEWHERE and " bench " not in one])
def test_what_stands_in_the_text(settled, span, tmp_path):
    script = span
    for word, meant in WORDS.items() if span.startswith("redcap-sync ") else ():
        script = script.replace(word, meant)
    if span.startswith("pip install"):
        # From a copy, as it leaves its build beside the source; without a network, as all that it needs is here.
        for name in ("supervisor", "worker"):
            shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, tmp_path / "copy")
        offline = f"python -m pip install -q --no-deps --no-build-isolation --no-index --target {tmp_path}/there"
        settled.type(f"cd {tmp_path}/copy && {script.replace('pip install', offline)}")
        assert (tmp_path / "there" / "supervisor" / "page" / "page.html").exists()
        return
    if script == "redcap-sync run":
        script = f"""until_it_says '"event":"cycle"' {script}"""
    elif script.startswith("redcap-sync status"):
        script += " || [ $? = 3 ]"
    elif "report" in script:
        script = f"redcap-sync once && {script}"
    settled.type(script)


QUICK = {"cycle", "parent", "report"}
AT_LENGTH = {
    "soak": "10,000 cycles take minutes; `parent` is the same with 300",
    "ceiling": "half a minute at full load",
    "methods": "half a minute; `parent` is the same for one of them",
    "memory": "needs a network for its peers, and a minute",
    "sync": "needs a network for its peers, and minutes",
    "upsert": "minutes",
    "fleet": "minutes",
    "peers": "needs a network for its peers, and minutes",
}


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_bench_prints_figures(name):
    """Whether its goals are met is no test's business: a busy machine is slow."""
    command = ["./ops/start", "bench", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert re.search(r"\d", done.stdout)
    assert not done.stderr


def test_no_command_was_forgotten():
    assert [one for one, taken in BLOCKS.items() if taken is None] == []
    assert set(ELSEWHERE) <= set(SPANS)
    benches = set(re.findall(r"\./ops/start bench (?!NAME)(\w+)", README))
    assert {"parent", "soak", "memory"} <= benches <= set(PROOFS)
    assert set(PROOFS) == QUICK | set(AT_LENGTH)
