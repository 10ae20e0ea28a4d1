#!/usr/bin/env python3
"""Checks the documentation: every link to a file or a heading leads somewhere, and every message that
docs/troubleshooting.md quotes exists in the sources. Prints what is wrong, and exits with 1 if anything is.

    python3 Tests/docs.py
"""
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
pages = [root / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Benchmarks/README.md")]
pages += sorted((root / "docs").glob("*.md"))
problems = []


def prose(text):
    """The text without blocks of code."""
    return re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)


def anchors(text):
    """The names of headings, as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ +(.*)$", prose(text), flags=re.M):
        name = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", name).replace(" ", "-")
        number, unique = 0, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.add(unique)
    return found


links = 0
for page in pages:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        links += 1
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            problems.append(f"{page.relative_to(root)}: {target}: there is no such file")
        elif anchor and anchor not in anchors(file.read_text()):
            problems.append(f"{page.relative_to(root)}: {target}: there is no such heading")

# A message may be put together from several literals, and has values in it, which a page writes as an ellipsis.
files = sorted((root / "Sources").rglob("*.swift")) + [root / "install/kubernetes/base/admission.yaml"]
sources = "\n".join(file.read_text() for file in files)
sources = re.sub(r'"\s*\+\s*"', "", sources)
quotes = 0
for row in (root / "docs/troubleshooting.md").read_text().split("\n"):
    cell = row.split("|")[1] if row.startswith("| ") else ""
    for quote in re.findall(r'"([^"]+)"', cell):
        for part in re.split(r"…|\b1 (?=pod|gateway)", quote):
            part = part.strip(" :;,")
            if len(part) < 4:
                continue
            quotes += 1
            if part not in sources:
                problems.append(f"docs/troubleshooting.md: no program prints \"{part}\"")

print("\n".join(problems) if problems else f"{links} links and {quotes} quoted messages are right")
sys.exit(1 if problems else 0)
