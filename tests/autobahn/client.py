"""The fuzzing client of the suite that setup.sh has made in the directory named first: client.py DIRECTORY SPEC."""

import json
import sys

folder, spec = sys.argv[1:3]
sys.path[:0] = [f"{folder}/suite", f"{folder}/library"]
sys.argv = ["wstest", "-m", "fuzzingclient", "-s", spec]


def readable(value):
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else str(value)


dumps = json.dumps
json.dumps = lambda value, **named: dumps(value, **{**named, "default": readable})

import autobahntestsuite.fuzzing as fuzzing  # noqa: E402: only now is it to be found

# Pages for people are not wanted, and their templates are not translated.
fuzzing.FuzzingFactory.createMasterReportHTML = lambda self, folder: None
fuzzing.FuzzingFactory.createAgentCaseReportHTML = lambda self, agent, case, folder: None

from autobahntestsuite.wstest import run  # noqa: E402

run()
