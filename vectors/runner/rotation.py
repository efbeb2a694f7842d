"""docs/spec/rotation.md: what is due, what steps change, which states are valid."""

import re

PENDING, IN_USE, LEFT = ("creating", "created", "verified"), ("active", "overlap"), ("retired", "destroyed")
EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


class Refused(Exception):
    pass


def effective_now(state, now):
    moments = [now, (state["request"] or {}).get("requestedAtMs", 0)]
    for version in state["versions"]:
        moments += [version[name] or 0 for name in ("createdAtMs", "activatedAtMs", "retiredAtMs")]
    return max(moments)


def first(versions, *states):
    return next((version for version in versions if version["state"] in states), None)


def trigger(policy, state):
    active = first(state["versions"], "active")
    if active is None:
        return ("initial", 0)
    found = []
    if state["request"]:
        found.append(("event", state["request"]["requestedAtMs"]))
    if policy["maxUses"] is not None and state["uses"] >= policy["maxUses"]:
        found.append(("max_uses", active["activatedAtMs"]))
    if policy["maxAgeMs"] is not None:
        found.append(("max_age", active["createdAtMs"] + policy["maxAgeMs"] - policy["overlapMs"]))
    if policy["intervalMs"] is not None:
        found.append(("interval", active["activatedAtMs"] + policy["intervalMs"]))
    return min(found, key=lambda pair: pair[1], default=None)


def decide(policy, state, now):
    now, rows = effective_now(state, now), []
    pending = first(state["versions"], *PENDING)
    if pending:
        action, reason = {"creating": ("create", "begun"), "created": ("verify", "created"), "verified": ("activate", "verified")}[pending["state"]]
        rows.append((0, action, pending["version"], reason))
    else:
        why = trigger(policy, state)
        if why:
            rows.append((max(why[1], state["retryAtMs"] or 0), "create", state["lastVersion"] + 1, why[0]))
    for version in state["versions"]:
        if version["state"] == "overlap":
            rows.append((version["overlapUntilMs"], "retire", version["version"], "overlap_ended"))
        if version["state"] == "retired" and policy["destroyAfterMs"] is not None:
            rows.append((version["retiredAtMs"] + policy["destroyAfterMs"], "destroy", version["version"], "retention_ended"))
    due = [{"action": action, "version": number, "reason": reason} for at, action, number, reason in rows if at <= now]
    return {"due": due, "nextMs": min((row[0] for row in rows if row[0] > now), default=None)}


def usable(state, now):
    now = effective_now(state, now)
    return [v["version"] for v in reversed(state["versions"]) if v["state"] == "active" or (v["state"] == "overlap" and v["overlapUntilMs"] > now)]


def overlap_of(policy, event):
    return next((named["overlapMs"] for named in policy["events"] if named["event"] == event), policy["overlapMs"])


def _changed(rotation, number, **members):
    return {**rotation, "versions": [{**v, **members} if v["version"] == number else v for v in rotation["versions"]]}


def _requested(policy, state, event, now):
    if event not in [named["event"] for named in policy["events"]]:
        return state
    before = state["request"]
    if before is None or overlap_of(policy, event) < overlap_of(policy, before["event"]):
        before = {"event": event, "requestedAtMs": now}
    return {**state, "request": before, "retryAtMs": None}


def apply(policy, state, step, now):
    now, kind, number = effective_now(state, now), step["step"], step["version"]
    version = next((v for v in state["versions"] if v["version"] == number), None)
    if version is None:
        if 1 <= number <= state["lastVersion"]:
            return state
        if kind not in ("begun", "created") or not _is_count(number) or number != state["lastVersion"] + 1 or first(state["versions"], *PENDING):
            raise Refused
        added = {"version": number, "state": {"begun": "creating", "created": "created"}[kind], "createdAtMs": now}
        added.update(activatedAtMs=None, overlapUntilMs=None, retiredAtMs=None)
        return {**state, "lastVersion": number, "versions": [*state["versions"], added], "retryAtMs": None}
    at, served = version["state"], version["activatedAtMs"] is not None
    if kind == "created" and at == "creating":
        return _changed(state, number, state="created")
    if kind == "verified" and at == "creating":
        raise Refused
    if kind == "verified" and at == "created":
        return _changed(state, number, state="verified")
    if kind == "activated" and at == "verified":
        active = first(state["versions"], "active")
        after = _changed(state, number, state="active", activatedAtMs=now)
        if active:
            end = now + overlap_of(policy, (state["request"] or {}).get("event"))
            if policy["maxAgeMs"] is not None:
                end = max(now, min(end, active["createdAtMs"] + policy["maxAgeMs"]))
            after = _changed(after, active["version"], state="overlap", overlapUntilMs=end)
        return {**after, "uses": 0, "request": None}
    if kind == "activated" and not served:
        raise Refused
    if kind == "failed" and at in PENDING:
        return {**_changed(state, number, state="retired", retiredAtMs=now), "retryAtMs": now + policy["retryAfterMs"]}
    if kind == "failed" and served:
        raise Refused
    if kind == "retired" and at == "overlap":
        return _changed(state, number, state="retired", retiredAtMs=now)
    if kind == "retired" and at not in LEFT:
        raise Refused
    if kind == "destroyed" and at == "retired":
        return _changed(state, number, state="destroyed")
    if kind == "destroyed" and at not in LEFT:
        raise Refused
    if kind == "used" and at == "active":
        return {**state, "uses": max(state["uses"], step["uses"])}
    if kind == "requested" and at in PENDING:
        raise Refused
    if kind == "requested" and at == "active":
        return _requested(policy, state, step["event"], now)
    return state


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


LAST_MOMENT = 253_402_300_799_999  # the end of 9999
HUNDRED_YEARS = 3_155_760_000_000


def _is_moment(value):
    return _is_count(value) and value <= LAST_MOMENT


def _is_end(value):
    return _is_count(value) and value <= LAST_MOMENT + HUNDRED_YEARS


def _has(value, *names):
    return isinstance(value, dict) and sorted(value) == sorted(names)


def _is_version(v):
    if not _has(v, "version", "state", "createdAtMs", "activatedAtMs", "overlapUntilMs", "retiredAtMs"):
        return False
    at, created, activated, until, retired = (v[name] for name in ("state", "createdAtMs", "activatedAtMs", "overlapUntilMs", "retiredAtMs"))
    if at not in (*PENDING, *IN_USE, *LEFT) or not _is_count(v["version"]) or v["version"] == 0 or not _is_moment(created):
        return False
    served = at in IN_USE or (at in LEFT and activated is not None)
    if not (_is_moment(activated) and activated >= created if served else activated is None):
        return False
    if not (_is_end(until) and until >= activated if served and at != "active" else until is None):
        return False
    return _is_moment(retired) and retired >= (activated or created) if at in LEFT else retired is None


def is_state(state):
    if not _has(state, "lastVersion", "versions", "uses", "request", "retryAtMs"):
        return False
    versions, request, last = state["versions"], state["request"], state["lastVersion"]
    if not (_is_count(last) and _is_count(state["uses"]) and (state["retryAtMs"] is None or _is_end(state["retryAtMs"]))):
        return False
    if not isinstance(versions, list) or not all(map(_is_version, versions)):
        return False
    numbers = [v["version"] for v in versions]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] > last):
        return False
    if any(v["state"] in PENDING and v["version"] != last for v in versions):
        return False
    active = [v["version"] for v in versions if v["state"] == "active"]
    if active != [v["version"] for v in versions if v["activatedAtMs"] is not None][-1:]:
        return False
    if request is not None and not (_has(request, "event", "requestedAtMs") and _is_moment(request["requestedAtMs"])):
        return False
    if request is not None and not (isinstance(request["event"], str) and EVENT.fullmatch(request["event"])):
        return False
    return bool(active) or (request is None and state["uses"] == 0)


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            state, valid = test["state"], test["result"] == "valid"
            if group["type"] == "RotationParse":
                yield test, is_state(state) == valid
            elif group["type"] == "RotationDecide":
                same = decide(group["policy"], state, test["nowMs"]) == test["decision"]
                yield test, same and usable(state, test["nowMs"]) == test["usable"] and is_state(state)
            else:
                try:
                    after = apply(group["policy"], state, test["step"], test["nowMs"])
                except Refused:
                    after = None
                again = after is None or apply(group["policy"], after, test["step"], test["nowMs"]) == after
                yield test, after == (test["after"] if valid else None) and again and (after is None or is_state(after))
