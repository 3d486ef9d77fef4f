"""What Grafana would only show once it is opened: dashboard.py DASHBOARD.JSON. Grafana itself is in no registry that is reached here."""

import json
import re
import sys

board = json.load(open(sys.argv[1]))
panels = board["panels"]
charts = [panel for panel in panels if panel["type"] != "row"]
problems = []


def want(holds, problem):
    if not holds:
        problems.append(problem)


want(board["uid"] and board["schemaVersion"] >= 36 and board.get("id") is None, "uid, schemaVersion, or an id of one installation")
ids = [panel["id"] for panel in panels]
want(len(ids) == len(set(ids)), "two panels have the same id")
taken = {}
for panel in panels:
    place, name = panel["gridPos"], panel["title"]
    want(place["x"] + place["w"] <= 24, f"{name}: wider than the grid")
    for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
        want(taken.setdefault(cell, name) == name, f"{name}: covers {taken[cell]}")
known = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
for panel in charts:
    name = panel["title"]
    want(panel["type"] in {"stat", "timeseries", "table"}, f"{name}: {panel['type']} is a plugin")
    want(panel["fieldConfig"]["defaults"] is not None and panel["targets"], f"{name}: shows nothing")
    refs = [target["refId"] for target in panel["targets"]]
    want(len(refs) == len(set(refs)), f"{name}: two queries have the same refId")
    for target in panel["targets"]:
        want(target["datasource"]["uid"] == "${datasource}", f"{name}: a data source of one installation")
        used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
        want(used <= known, f"{name}: no variable {used - known}")
        want('job=~"$job"' in target["expr"], f"{name}: a query that does not heed the job")
# The first screen answers: fresh? anything set aside? where is it stuck? In colours, before anybody reads a number.
first = [panel for panel in charts if panel["gridPos"]["y"] < 6]
asked = " ".join(target["expr"] for panel in first for target in panel["targets"])
for metric in (
    "aegis_oldest_unacknowledged_seconds",
    "aegis_ingest_latency_seconds_bucket",
    "aegis_dead_letters",
    "aegis_entries_lost_total",
    "aegis_component_up",
):
    want(metric in asked, f"the first row does not show {metric}")
for panel in first:
    config = panel["fieldConfig"]["defaults"]
    want(panel["type"] == "stat" and panel["options"]["colorMode"] == "background", f"{panel['title']}: without a colour")
    want(config.get("mappings") or len(config["thresholds"]["steps"]) > 1, f"{panel['title']}: one colour whatever is the matter")
    want(panel.get("description"), f"{panel['title']}: says not what it means")
print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
sys.exit(bool(problems))
