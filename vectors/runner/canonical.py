"""docs/spec/request-signing.md sections 3 and 4: the grammar of requests, read without regular expressions."""

import string

from request_signing import COVERED
from strict_bytes import decode

IGNORED = ["x-goog-api-key", "x-goog-api-client", "anthropic-dangerous-direct-browser-access"]
CARRIAGE = ["version", "key-id", "timestamp", "nonce", "body-sha256", "signature"]
PATH_CHARACTERS = set(string.ascii_letters + string.digits + "._~!$&'()*+,;=:@-")
PRINTABLE = {chr(code) for code in range(0x21, 0x7F)}
HEX = set(string.hexdigits)


def _is_segment(text):
    if text.split(";")[0] in (".", ".."):
        return False
    while text:
        if text[0] != "%":
            if text[0] not in PATH_CHARACTERS:
                return False
            text = text[1:]
            continue
        digits, text = text[1:3], text[3:]
        if len(digits) != 2 or not set(digits) <= HEX:
            return False
        code = int(digits, 16)
        if code < 0x20 or code in (0x25, 0x2E, 0x2F, 0x5C, 0x7F):
            return False
    return True


def split_target(target):
    """Path and query, or None."""
    path, _, query = target.partition("?")
    if len(target) > 8192 or not path.startswith("/") or not set(query) <= PRINTABLE - {"#"}:
        return None
    *inner, last = path[1:].split("/")
    if not all(each and _is_segment(each) for each in inner) or not _is_segment(last):
        return None
    return path, query


def is_authority(text):
    host, port = text, None
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or not inside or not set(inside) <= set("0123456789abcdef:.") or rest[:1] not in ("", ":"):
            return False
        port = rest[1:] if rest else None
    else:
        host, colon, rest = text.partition(":")
        port = rest if colon else None
        if not host or not set(host) <= set(string.ascii_lowercase + string.digits + "._-"):
            return False
    if port is not None and not (1 <= len(port) <= 5 and set(port) <= set(string.digits) and port[0] != "0"):
        return False
    return len(text) <= 261


def is_field_value(text):
    return 1 <= len(text) <= 1024 and set(text) <= PRINTABLE | {" "} and text == text.strip(" ")


def _has_bytes(alphabet, text, length):
    data = decode(alphabet, text)
    return data is not None and len(data) == length


VALUES = {
    "key-id": lambda text: _has_bytes("base64url", text, 32),
    "timestamp": lambda text: len(text) == 10 and set(text) <= set(string.digits) and text[0] != "0",
    "nonce": lambda text: _has_bytes("base64url", text, 16),
    "body-sha256": lambda text: _has_bytes("base64", text, 32),
    "signature": lambda text: _has_bytes("base64", text, 64),
}


def _lower(text):
    return "".join(c.lower() if c in string.ascii_uppercase else c for c in text)


def faults(test):
    """The codes of all that is wrong with a head: it is refused with one of them."""
    found = set()

    def demand(holds, code="malformed_request"):
        if not holds:
            found.add(code)

    method, headers, authorities = test["method"], test["headers"], test["authorities"]
    demand(1 <= len(method) <= 16 and set(method) <= set(string.ascii_uppercase))
    demand(split_target(test["target"]) is not None)
    demand(len(headers) <= 256)
    demand(all(name.isascii() or name.lower() == name for name, _ in headers))
    named = {}
    for name, value in headers:
        named.setdefault(_lower(name), []).append(value)

    def only(name):
        values = named.get(name, [])
        demand(len(values) <= 1)
        return values[0] if values else None

    carried = {name: only(f"x-keyguard-{name}") for name in CARRIAGE}
    demand(carried["version"] is not None)
    demand(carried["version"] in (None, "1"), "unsupported_version")
    for name, is_right in VALUES.items():
        demand(carried[name] is not None and is_right(carried[name]))
    for name in ["content-type", *COVERED]:
        demand(only(name) is None or is_field_value(named[name][0]))
    demand("signature" not in named and "signature-input" not in named)
    demand(all(_lower(value) == "identity" for value in named.get("content-encoding", [])), "unsupported_encoding")
    known = [*(f"x-keyguard-{name}" for name in CARRIAGE), *COVERED, *IGNORED]
    guarded = [name for name in named if name.startswith(("anthropic-", "openai-", "x-goog-", "x-keyguard-"))]
    demand(all(name in known for name in guarded), "unsupported_header")
    host = only("host")
    if len(authorities) > 1:
        demand(host is not None and host.isascii())
        if host is not None and host.isascii():
            host = _lower(host)
            short = host[: host.rindex(":")] if host.endswith((":80", ":443")) else host
            demand(host in authorities or short in authorities, "signature_invalid")
    return found


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            valid = test["result"] == "valid"
            if group["type"] == "SplitTarget":
                found = split_target(test["target"])
                yield test, found == (test["path"], test["query"]) if valid else found is None
            elif group["type"] == "ReadHead":
                found = faults(test)
                yield test, not found if valid else test["code"] in found
            else:
                is_right = is_authority if group["type"] == "Authority" else is_field_value
                yield test, is_right(test["text"]) == valid
