#!/usr/bin/env python3
"""Autobahn through the balancer: each case has to get the same verdict as without it.

    tests/autobahn/run.py [--cases 1.*,2.*] [--upgrade-every SECONDS] [--folder DIRECTORY]

Runs Autobahn's fuzzing client twice against one echo node: straight, and through `mainstay` (MAINSTAY_BIN, or the debug
build). With --upgrade-every the balancer is replaced by `mainstay upgrade` again and again meanwhile. Prints every case
whose verdict differs, and ends with 1 if there is one. Needs node with the packages of tests/js; the suite is set up by
setup.sh in the first run.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# All cases, one after the other, on a busy machine.
LONGEST = 3 * 60 * 60
LISTENING = re.compile(r'(?<!admin )\blistening\b.*\baddress"?[=:]\s*"?([^\s",]+)')
ADMIN = re.compile(r'\badmin listening\b.*\baddress"?[=:]\s*"?([^\s",]+)')
SERVING = re.compile(r"\bserving\b")



def free_port():
    """One that is free now: a process that takes over has to find the same address in its config."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Balancer:
    """The balancer as a user starts it, before one node."""

    def __init__(self, binary, folder, node):
        self.binary = binary
        config = folder / "balancer.yaml"
        config.write_text(
            json.dumps(
                {
                    "listeners": [{"address": f"127.0.0.1:{free_port()}"}],
                    "admin": {"address": f"127.0.0.1:{free_port()}"},
                    "access_log": {"format": "off"},
                    "pools": {"echo": {"nodes": [{"id": "echo", "address": f"127.0.0.1:{node}"}], "health": {"tcp": {}}}},
                }
            )
        )
        environment = {**os.environ, "NO_COLOR": "1", "RUST_LOG": "info"}
        command = [binary, "run", "-c", str(config)]
        self.first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        self.process = self.first.pid
        self.upgrades = 0
        self.admin = self.line(ADMIN)
        self.address = self.line(LISTENING)
        self.line(SERVING)
        # The log goes on, also that of the processes that follow; nobody may be held up by a full pipe.
        self.log = []
        threading.Thread(target=lambda: self.log.extend(self.first.stderr), daemon=True).start()

    def line(self, pattern):
        for line in self.first.stderr:
            if found := pattern.search(line):
                return found.group(1) if found.groups() else line
        sys.exit(f"the balancer ended before it said {pattern.pattern!r}")

    def upgrade(self):
        """Replaces the running balancer; gives what is wrong, if anything is."""
        command = [self.binary, "upgrade", "--admin", self.admin]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode != 0:
            return answer.stderr.strip() or f"exit code {answer.returncode}"
        self.upgrades += 1
        status = [self.binary, "status", "--json", "--admin", self.admin]
        answer = subprocess.run(status, capture_output=True, text=True)
        if answer.returncode != 0:
            return f"nobody has taken over: {answer.stderr.strip()}"
        self.process = json.loads(answer.stdout)["pid"]
        return None

    def stop(self):
        for process in {self.process, self.first.pid}:
            try:
                os.kill(process, signal.SIGTERM)
            except ProcessLookupError:
                pass
        self.first.wait()


def upgrade_again_and_again(balancer, seconds, enough):
    """Until `enough`; a failure is said at once and kept."""
    while not enough.wait(seconds):
        if fault := balancer.upgrade():
            balancer.fault = fault
            print(f"after {balancer.upgrades} upgrades: {fault}", *balancer.log, sep="\n", file=sys.stderr)
            return


def verdicts(folder, name, url, cases):
    """What the suite says of each case, as (behavior, behavior at the close)."""
    reports = folder / name
    spec = folder / f"{name}.json"
    server = {"agent": name, "url": url, "options": {"version": 18}}
    spec.write_text(
        json.dumps({"outdir": str(reports), "servers": [server], "cases": cases, "exclude-cases": [], "exclude-agent-cases": {}})
    )
    command = [str(folder / "venv/bin/python"), str(HERE / "client.py"), str(folder), str(spec)]
    with open(folder / f"{name}.log", "w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=LONGEST, check=True, cwd=folder)
    # No word of it where not one case could be begun.
    index = json.loads((reports / "index.json").read_text()).get(name, {})
    return {case: (verdict["behavior"], verdict["behaviorClose"]) for case, verdict in index.items()}


def compare(straight, through):
    """Prints the differences; gives how many there are."""
    by_number = lambda case: [int(part) for part in case.split(".")]
    different = [case for case in {**straight, **through} if straight.get(case) != through.get(case)]
    for case in sorted(different, key=by_number):
        print(f"case {case}: straight {straight.get(case)}, through the balancer {through.get(case)}")
    failed = sum(verdict[0] == "FAILED" for verdict in straight.values())
    print(f"{len(straight)} cases, {len(different)} with another verdict; {failed} fail straight, too")
    return len(different)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="*", help="which, separated by commas")
    parser.add_argument("--upgrade-every", type=float, metavar="SECONDS", help="replace the balancer meanwhile")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "target/autobahn", help="for the suite and its reports")
    return parser.parse_args()


def main():
    wanted = arguments()
    folder, cases = wanted.folder.resolve(), wanted.cases.split(",")
    subprocess.run([str(HERE / "setup.sh"), str(folder)], check=True)
    binary = os.environ.get("MAINSTAY_BIN", str(ROOT / "target/debug/mainstay"))
    node = subprocess.Popen(["node", str(HERE / "echo.mjs")], stdout=subprocess.PIPE, text=True)
    try:
        port = int(node.stdout.readline())
        straight = verdicts(folder, "straight", f"ws://127.0.0.1:{port}", cases)
        if not straight:
            sys.exit(f"no case is named by {wanted.cases}")
        balancer = Balancer(binary, folder, port)
        balancer.fault, enough = None, threading.Event()
        try:
            if wanted.upgrade_every:
                again = (balancer, wanted.upgrade_every, enough)
                upgrading = threading.Thread(target=upgrade_again_and_again, args=again)
                upgrading.start()
            through = verdicts(folder, "through", f"ws://{balancer.address}", cases)
            enough.set()
            if wanted.upgrade_every:
                upgrading.join()
                print(f"{balancer.upgrades} upgrades during the run")
        finally:
            enough.set()
            balancer.stop()
        is_unlike = compare(straight, through) > 0
        sys.exit(1 if is_unlike or balancer.fault else 0)
    finally:
        node.kill()
        node.wait()


if __name__ == "__main__":
    main()
