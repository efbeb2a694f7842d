"""docs/spec/audit.md: records, their MACs, and changes of the MAC key."""

import datetime
import hashlib
import hmac
import re

import canonical_json

TIME = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z", re.ASCII)
RECORD, HANDOVER = b"kg-audit-v1\0", b"kg-audit-handover-v1\0"


class Invalid(Exception):
    pass


def mac(key, label, origin, seq, prev_mac, data):
    name = origin.encode("ascii")
    text = label + len(name).to_bytes(2, "big") + name + seq.to_bytes(8, "big") + prev_mac + data
    return hmac.new(key, text, hashlib.sha256).digest()


def is_time(text):
    if not isinstance(text, str) or TIME.fullmatch(text) is None or text < "1970":
        return False
    try:
        datetime.date(int(text[:4]), int(text[5:7]), int(text[8:10]))
    except ValueError:
        return False
    return True


def time_text(ms):
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=ms)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def key_change(before, after):
    return {"action": "audit.mac_key_change", "actor": "system", "from_mac_key_id": before, "outcome": "success", "to_mac_key_id": after}


def demand(holds):
    if not holds:
        raise Invalid


def check_record(record, origin, keys, position):
    seq, prev_mac, key_id = position
    data, stored = bytes.fromhex(record["bytes"]), bytes.fromhex(record["mac"])
    demand(record["seq"] == seq and bytes.fromhex(record["prevMac"]) == prev_mac)
    handover = record.get("handover")
    demand(handover is not None or key_id is None or record["macKeyId"] == key_id)
    demand(record["macKeyId"] in keys)
    demand(hmac.compare_digest(mac(keys[record["macKeyId"]], RECORD, origin, seq, prev_mac, data), stored))
    try:
        entry = canonical_json.read(data)
    except canonical_json.NotCanonical:
        raise Invalid from None
    demand(isinstance(entry, dict) and entry.get("origin") == origin)
    demand(isinstance(entry.get("seq"), float) and entry["seq"] == seq and is_time(entry.get("ts")))
    if handover is not None:
        before, after = handover["macKeyId"], record["macKeyId"]
        demand(seq > 0 and before != after and key_id in (None, before) and before in keys)
        demand(data == canonical_json.write({**key_change(before, after), "origin": origin, "seq": seq, "ts": entry["ts"]}).encode())
        name = after.encode()
        vouched = stored + len(name).to_bytes(2, "big") + name + data
        demand(hmac.compare_digest(mac(keys[before], HANDOVER, origin, seq, prev_mac, vouched), bytes.fromhex(handover["mac"])))
    return (seq + 1, stored, record["macKeyId"])


def verify(test, origin, keys):
    """None for a chain that is whole, else the number at which it is not."""
    start = test.get("from", {"seq": 0, "prevMac": "00" * 32, "macKeyId": None})
    position = (start["seq"], bytes.fromhex(start["prevMac"]), start["macKeyId"])
    for record in test["records"]:
        try:
            position = check_record(record, origin, keys, position)
        except Invalid:
            return position[0]
    return None


def is_sealed_alike(test, origin):
    for record, sealed in zip(test["records"], test.get("entries", [])):
        change = sealed.get("keyChange")
        entry = sealed["entry"] if change is None else key_change(change["from"], change["to"])
        text = canonical_json.write({**entry, "origin": origin, "seq": record["seq"], "ts": time_text(sealed["nowMs"])})
        if text.encode().hex() != record["bytes"]:
            return False
    return True


def judge(document):
    for group in document["testGroups"]:
        keys = {key["keyId"]: bytes.fromhex(key["key"]) for key in group["keys"]}
        for test in group["tests"]:
            stopped = verify(test, group["origin"], keys)
            yield test, stopped == test.get("invalidSeq") and (stopped is None) == (test["result"] == "valid") and is_sealed_alike(test, group["origin"])
