"""deny.toml's licences, bans and sources against the locked dependencies, for machines without cargo-deny; advisories need cargo-deny.

Usage: cargo metadata --format-version 1 --locked --filter-platform TARGET | licenses.py deny.toml
"""

import json
import re
import sys
import tomllib

rules = tomllib.load(open(sys.argv[1], "rb"))
allowed = set(rules["licenses"]["allow"])
banned = {rule["name"] for rule in rules["bans"]["deny"]}
metadata = json.load(sys.stdin)
# What is resolved for the target: `packages` lists every platform's.
shipped = {node["id"] for node in metadata["resolve"]["nodes"]}


def holds(expression):
    """Whether an SPDX expression can be met with the allowed licences alone."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))

    def term():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens[:1] == ["WITH"]:
            tokens.pop(0)
            token += " WITH " + tokens.pop(0)
        return token in allowed

    def both():
        value = term()
        while tokens[:1] == ["AND"]:
            tokens.pop(0)
            value &= term()
        return value

    def either():
        value = both()
        while tokens[:1] == ["OR"]:
            tokens.pop(0)
            value |= both()
        return value

    return either()


bad = []
for package in metadata["packages"]:
    if package["id"] not in shipped:
        continue
    name = f"{package['name']} {package['version']}"
    if not holds(package["license"] or "none"):
        bad.append(f"{name}: licence {package['license']}")
    if package["name"] in banned:
        bad.append(f"{name}: banned")
    if package["source"] and not package["source"].endswith("crates.io-index"):
        bad.append(f"{name}: comes from {package['source']}")
print("\n".join(bad), file=sys.stderr, end="\n" if bad else "")
sys.exit(1 if bad else 0)
