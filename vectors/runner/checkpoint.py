"""docs/spec/audit.md section 7: checkpoints as signed notes, verifier keys, and the MAC of the head in them."""

import base64
import hashlib
import re

import ed25519

ORIGIN = re.compile(r"[\x21-\x2a\x2c-\x7e]{1,255}")
SIZE = re.compile(r"0|[1-9][0-9]*")
DASH = "\u2014 "
HEAD_MAC = "keyguard-head-mac "
MAX_CHARACTERS, MAX_SIGNATURES = 65_536, 100


class Refused(Exception):
    pass


def unbase64(text):
    """The bytes of a text in its one spelling."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused from error
    if base64.b64encode(data).decode() != text:
        raise Refused
    return data


def _is_name(text):
    return text != "" and "+" not in text and not any(c.isspace() or c == "\u0085" for c in text)


def _key_hash(name, data):
    return hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]


def read_key(text):
    """Name, key hash and public key of a verifier key."""
    name, plus, rest = text.partition("+")
    stated, plus, encoded = rest.partition("+")
    data = unbase64(encoded)
    if not (plus and _is_name(name)) or any(c < " " for c in name) or len(data) != 33 or data[0] != 1:
        raise Refused
    if stated != _key_hash(name, data).hex():
        raise Refused
    return name, data


def write_key(name, public):
    data = b"\1" + public
    return f"{name}+{_key_hash(name, data).hex()}+{base64.b64encode(data).decode()}"


def _utf16_length(text):
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _read_note(note):
    try:
        note.encode()
    except UnicodeEncodeError as error:
        raise Refused from error
    if _utf16_length(note) > MAX_CHARACTERS or any(c < " " and c != "\n" for c in note) or not note.endswith("\n"):
        raise Refused
    text, blank, block = note.rpartition("\n\n")
    lines = block[:-1].split("\n")
    if not blank or len(lines) > MAX_SIGNATURES:
        raise Refused
    signatures = []
    for line in lines:
        name, space, encoded = line[len(DASH) :].partition(" ")
        if not line.startswith(DASH) or not space or not _is_name(name):
            raise Refused
        data = unbase64(encoded)
        if len(data) <= 4:
            raise Refused
        signatures.append((name, data[:4], data[4:]))
    if len({signature[:2] for signature in signatures}) != len(signatures):
        raise Refused
    return text + "\n", signatures


def _read_text(text):
    origin, size, root, *extensions = (text[:-1].split("\n") + ["", "", ""])[: max(3, text.count("\n"))]
    if not ORIGIN.fullmatch(origin) or not SIZE.fullmatch(size) or int(size) >= 2**53 or "" in extensions:
        raise Refused
    data = unbase64(root)
    if len(data) != 32:
        raise Refused
    return {"origin": origin, "size": int(size), "root": data.hex(), "extensions": extensions}


def read(note, keys):
    text, signatures = _read_note(note)
    known = {(name, _key_hash(name, data)): data[1:] for name, data in map(read_key, keys)}
    signers = set()
    for name, key_hash, signature in signatures:
        public = known.get((name, key_hash))
        if public is None:
            continue
        if not ed25519.verify(public, text.encode(), signature):
            raise Refused
        signers.add(name)
    if not signers:
        raise Refused
    checkpoint = _read_text(text)
    if checkpoint["origin"] not in signers:
        raise Refused
    return checkpoint


def write(checkpoint, name, seed):
    root = base64.b64encode(bytes.fromhex(checkpoint["root"])).decode()
    lines = [checkpoint["origin"], str(checkpoint["size"]), root, *checkpoint["extensions"]]
    text = "".join(f"{line}\n" for line in lines)
    public, signature = ed25519.sign(seed, text.encode())
    return f"{text}\n{DASH}{name} {base64.b64encode(_key_hash(name, bytes([1]) + public) + signature).decode()}\n"


def head_mac(extensions):
    macs = [unbase64(line[len(HEAD_MAC) :]) for line in extensions if line.startswith(HEAD_MAC)]
    if len(macs) > 1 or any(len(mac) != 32 for mac in macs):
        raise Refused
    return macs[0].hex() if macs else None


def _tried(call, *arguments):
    try:
        return call(*arguments)
    except Refused:
        return Refused


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            valid = test["result"] == "valid"
            if group["type"] == "CheckpointVerify":
                found = _tried(read, test["note"], test["verifierKeys"])
                said = {name: value for name, value in test.get("checkpoint", {}).items() if name != "headMac"}
                yield test, found == said if valid else found is Refused
            elif group["type"] == "CheckpointSign":
                key = group["key"]
                made = write(test["checkpoint"], key["name"], bytes.fromhex(key["seed"]))
                yield test, made == test["note"] and write_key(key["name"], bytes.fromhex(key["publicKey"])) == key["verifierKey"]
            elif group["type"] == "HeadMac":
                found = _tried(head_mac, test["extensions"])
                yield test, found == test.get("headMac") if valid else found is Refused
            else:
                found = _tried(read_key, test["verifierKey"])
                if not valid:
                    yield test, found is Refused
                elif found is Refused or "publicKey" not in test:
                    yield test, found is not Refused
                else:
                    public = bytes.fromhex(test["publicKey"])
                    yield test, found == (test["name"], b"\1" + public) and write_key(test["name"], public) == test["verifierKey"]
