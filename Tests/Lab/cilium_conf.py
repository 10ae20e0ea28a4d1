#!/usr/bin/env python3
"""A stand-in for Cilium's agent, as far as the directory of network configurations is concerned, and a reader that looks all
the time, as container runtimes do.

    cilium_conf.py fight DIR COUNT SEED    writes, renames, truncates and deletes files COUNT times, then rests with its own
                                           file in its place
    cilium_conf.py own DIR COUNT SEED      the same, but touches only its own file, and always by rename (cni.exclusive=false)
    cilium_conf.py relentless DIR SECONDS  puts its own file back as soon as somebody else has changed it
    cilium_conf.py exclusive DIR SECONDS   cni.exclusive=true: also renames every other configuration to *.cilium_bak
    cilium_conf.py read DIR FILE [own]     looks until FILE appears, and prints what was wrong; with `own` also when the first
                                           list of the network lacks Culvert's plugin

The agent's ways: it renders its list, compares it with the file, and where they differ writes the file by rename
(05-cilium.conflist, mode 0644).
"""
import json
import os
import random
import sys
import time

OWN = "05-cilium.conflist"


def rendered(version="0.3.1", debug=False):
    return ('\n{\n  "cniVersion": "%s",\n  "name": "cilium",\n  "plugins": [\n    {\n       "type": "cilium-cni",\n'
            '       "enable-debug": %s,\n       "log-file": "/var/run/cilium/cilium-cni.log"\n    }\n  ]\n}'
            % (version, "true" if debug else "false"))


def replace(directory, name, text):
    beside = os.path.join(directory, "." + name + ".agent")  # no runtime reads this ending
    with open(beside, "w") as file:
        file.write(text)
    os.chmod(beside, 0o644)
    os.rename(beside, os.path.join(directory, name))


def quietly(action, *arguments):
    try:
        action(*arguments)
    except FileNotFoundError:
        pass


def configurations(directory):
    return [n for n in os.listdir(directory)
            if n.endswith((".conf", ".conflist", ".json")) and not os.path.isdir(os.path.join(directory, n))]


def put_others_aside(directory):
    for name in configurations(directory):
        if name != OWN:
            quietly(os.rename, os.path.join(directory, name), os.path.join(directory, name + ".cilium_bak"))


def own(directory, count, seed):
    for _ in range(count):
        replace(directory, OWN, rendered(seed.choice(["0.3.1", "1.0.0"]), seed.random() < 0.5))
        time.sleep(seed.random() * 0.004)
    replace(directory, OWN, rendered())


def truncate(directory, name, seed):
    path = os.path.join(directory, name)
    if os.path.exists(path):
        os.truncate(path, seed.randrange(0, 60))


def overwrite(directory, name, text):
    """In place and in two parts, as no agent should."""
    with open(os.path.join(directory, name), "w") as file:
        file.write(text[:40])
        file.flush()
        time.sleep(0.001)
        file.write(text[40:])


def fight(directory, count, seed):
    path = os.path.join(directory, OWN)
    for _ in range(count):
        what = seed.randrange(10)
        if what < 3:
            replace(directory, OWN, rendered(seed.choice(["0.3.1", "1.0.0"])))
        elif what == 3:
            quietly(os.unlink, path)
        elif what == 4:
            quietly(truncate, directory, OWN, seed)
        elif what == 5:
            overwrite(directory, OWN, rendered())
        elif what == 6:
            quietly(os.rename, path, path + ".cilium_bak")
        elif what == 7:
            quietly(os.rename, path + ".cilium_bak", path)
        elif what == 8:
            others = [n for n in configurations(directory) if n != OWN]
            if others:
                quietly(seed.choice([os.unlink, lambda p: os.truncate(p, 20)]),
                        os.path.join(directory, seed.choice(others)))
        else:
            put_others_aside(directory)
        time.sleep(seed.random() * 0.004)
    quietly(os.unlink, path + ".cilium_bak")
    replace(directory, OWN, rendered())


def relentless(directory, seconds, others):
    until = time.monotonic() + seconds
    path = os.path.join(directory, OWN)
    while time.monotonic() < until:
        try:
            with open(path) as file:
                is_same = file.read() == rendered()
        except FileNotFoundError:
            is_same = False
        if not is_same:
            replace(directory, OWN, rendered())
        if others:
            put_others_aside(directory)
        time.sleep(0.01)


def look(directory, until, must_be_chained):
    """What a runtime sees: the first list of the network `cilium`."""
    looks, wrong = 0, {}
    # What an opponent itself writes badly is its own; files with Culvert's entry in them are Culvert's to keep whole.
    while not os.path.exists(until):
        looks += 1
        first = None
        for name in sorted(configurations(directory)):
            try:
                with open(os.path.join(directory, name)) as file:
                    text = file.read()
            except (FileNotFoundError, IsADirectoryError):
                continue
            if name.startswith(("0", "1")) and "culvert" in name or "culvert" in text:
                try:
                    plugins = [p["type"] for p in json.loads(text)["plugins"]]
                except (ValueError, KeyError):
                    wrong.setdefault("broken " + name, text)
                    continue
                if plugins.count("culvert") > 1:
                    wrong.setdefault("twice in " + name, text)
            if first is None:
                first = (name, text)
        if must_be_chained and (first is None or '"culvert"' not in first[1]):
            wrong.setdefault("unrouted by " + (first[0] if first else "nothing"), "")
    print(json.dumps({"looks": looks, "wrong": wrong}))


def main():
    what, directory = sys.argv[1:3]
    if what == "fight":
        fight(directory, int(sys.argv[3]), random.Random(int(sys.argv[4])))
    elif what == "own":
        own(directory, int(sys.argv[3]), random.Random(int(sys.argv[4])))
    elif what == "relentless":
        relentless(directory, float(sys.argv[3]), False)
    elif what == "exclusive":
        relentless(directory, float(sys.argv[3]), True)
    elif what == "read":
        look(directory, sys.argv[3], len(sys.argv) > 4)
    else:
        sys.exit(__doc__)


main()
