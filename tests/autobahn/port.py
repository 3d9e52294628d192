"""Translates what 2to3 leaves of the Autobahn test suite: names within the package, and strings that are bytes.

In the suite a payload is a Python 2 string. Here it is text whose characters are the bytes (latin-1), and text.py, which
becomes a module of the suite, turns it into bytes wherever it meets the library. No case and no verdict is changed.
"""

import pathlib
import re
import shutil
import sys

TEXT = '__import__("autobahntestsuite.text", fromlist=["x"])'

# In every file: (pattern, replacement).
EVERYWHERE = [
    (r"(?m)^from _version", "from ._version"),
    (r"(?m)^import (choosereactor|fuzzing)\b", r"from . import \1"),
    # Modes of the program other than the fuzzing client: not translated.
    (r"(?m)^(?:from \. )?import (serializer|testee|echo|broadcast|massconnect)\b", r"\1 = None"),
    (r"from zope\.interface import implements", "implements = lambda *a: None"),
    (r"\(object, Case,\s*\)", "(Case,)"),
]

# In the cases.
CASES = [
    (r"binascii\.b2a_hex\(", f"{TEXT}.to_hex("),
    (r"binascii\.(?:a2b_hex|unhexlify)\(", f"{TEXT}.of_hex("),
    (r"v\.validate\(vss\[:i\]\)", f"v.validate({TEXT}.to_bytes(vss[:i]))"),
    (r"hashlib\.md5\(([^()]+)\)", rf"hashlib.md5({TEXT}.to_bytes(\1))"),
    (r"msg = msg\.decode\('utf-8'\)", f'msg = {TEXT}.to_bytes(msg).decode("utf-8")'),
    (r"m\.update\(msg\)", f"m.update({TEXT}.to_bytes(msg))"),
    (r"([A-Za-z_.]+|len\(self\.payload\)) / ([A-Za-z_.0-9]+)", r"\1 // \2"),
    (r"return pickle\.dumps\(obj1\) == pickle\.dumps\(obj2\)", "return obj1 == obj2"),
]

# In the protocol that runs them.
FUZZING = [
    (r"dd = binascii\.b2a_hex\(data\[:maxlen\]\) \+ ellipses", "dd = to_hex(to_bytes(data)[:maxlen]) + ellipses"),
    (r"dd = binascii\.b2a_hex\(data\)", "dd = to_hex(data)"),
    (r"dd = data\[:maxlen\] \+ ellipses", "dd = to_bytes(data)[:maxlen] + ellipses.encode()"),
    (r"         dd = data\n", "         dd = to_bytes(data)\n"),
    (r"p = ''\.join\(payload\)", "p = b''.join(payload)"),
    (r"class FuzzingProtocol:", "from .text import Coerce, of_bytes, to_bytes, to_hex\n\n\nclass FuzzingProtocol:"),
    (r"self\.runCase\.on(Ping|Pong)\(payload\)", r"self.runCase.on\1(of_bytes(payload))"),
    (r"self\.runCase\.onMessage\(msg, binary\)", "self.runCase.onMessage(of_bytes(msg), binary)"),
    (r"\(FuzzingProtocol, (WebSocket(?:Server|Client)Protocol)\)", r"(FuzzingProtocol, Coerce, \1)"),
]


def port(path):
    text = path.read_bytes().decode("latin-1")
    if re.match(r"^#.*coding[:=]", text):
        text = text.split("\n", 1)[1]
    rules = list(EVERYWHERE)
    if path.parent.name == "case":
        rules += CASES
    if path.name == "fuzzing.py":
        rules += FUZZING
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    path.write_bytes(("# -*- coding: latin-1 -*-\n" + text).encode("latin-1"))


if __name__ == "__main__":
    package = pathlib.Path(sys.argv[1])
    for file in package.rglob("*.py"):
        port(file)
    shutil.copy(pathlib.Path(__file__).with_name("text.py"), package / "text.py")
