#!/usr/bin/env bash
# Autobahn's fuzzing client for run.py, in the directory named: a virtual environment with what it stands on, and the
# suite itself, which was written for Python 2, translated for Python 3 by port.py. Needs python3 with `2to3` (3.11 or
# 3.12). Does nothing where that has been done.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?"usage: setup.sh DIRECTORY"}
mkdir -p "$folder" && cd "$folder"
[ -e ready ] && exit 0

python3 -m venv venv
venv/bin/pip -q install twisted pyopenssl service_identity jinja2 "setuptools<80" zope.interface
# The last version of the library whose interface the suite knows.
venv/bin/pip -q install --target library --no-deps "autobahn==0.10.9" "txaio==2.1.0" six
# Its plugins would be looked for in the wrong place.
rm -rf library/twisted/plugins
# pip says that it cannot build this; the sources are all that is wanted.
venv/bin/pip -q download --no-deps --no-binary :all: -d archive "autobahntestsuite==25.10.1" || true
rm -rf sources suite && mkdir sources suite
tar xzf archive/autobahntestsuite-*.tar.gz -C sources --strip-components=1
cp -r sources/autobahntestsuite suite/
2to3 -w -n suite/autobahntestsuite >/dev/null 2>&1
python3 "$here/port.py" suite/autobahntestsuite
touch ready
