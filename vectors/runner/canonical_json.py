"""RFC 8785 canonical JSON, as docs/spec/audit.md section 1 narrows it."""

import json
import math
import struct
from decimal import Decimal

MAX_DEPTH = 128
ESCAPES = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


class NotCanonical(ValueError):
    pass


def number(value):
    """What ECMAScript writes for a double: the shortest digits, which repr() finds too, in its own notation."""
    if not math.isfinite(value):
        raise NotCanonical("not finite")
    if value == 0:
        return "0"
    if value < 0:
        return "-" + number(-value)
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    point = len(digits) + exponent
    if len(text) <= point <= 21:
        return text + "0" * (point - len(text))
    if 0 < point <= 21:
        return text[:point] + "." + text[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + text
    mantissa = text if len(text) == 1 else text[0] + "." + text[1:]
    return f"{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def string(text):
    out = []
    for character in text:
        code = ord(character)
        if 0xD800 <= code <= 0xDFFF:
            raise NotCanonical("a lone surrogate")
        out.append(ESCAPES.get(code) or (f"\\u{code:04x}" if code < 32 else character))
    return '"' + "".join(out) + '"'


def write(value, depth=0):
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return number(float(value))
    if isinstance(value, str):
        return string(value)
    if depth == MAX_DEPTH:
        raise NotCanonical("too deep")
    if isinstance(value, list):
        return "[" + ",".join(write(item, depth + 1) for item in value) + "]"
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{string(name)}:{write(value[name], depth + 1)}" for name in names) + "}"
    raise NotCanonical("not a JSON value")


def _constant(name):
    raise NotCanonical(name)


def parse(text):
    try:
        return json.loads(text, parse_int=float, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise NotCanonical("not JSON") from error


def read(data):
    """The value of which `data` is the canonical form, byte for byte."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotCanonical("not UTF-8") from error
    value = parse(text)
    if write(value) != text:
        raise NotCanonical("another spelling")
    return value


def _attempt(call):
    try:
        return call()
    except NotCanonical:
        return None


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            if group["type"] == "WriteNumber":
                (value,) = struct.unpack(">d", bytes.fromhex(test["ieee754"]))
                got, expected = _attempt(lambda: write(value)), test.get("canonical")
            elif group["type"] == "Write":
                got, expected = _attempt(lambda: write(parse(test["input"])).encode().hex()), test.get("canonical")
            else:
                got, expected = _attempt(lambda: write(read(bytes.fromhex(test["bytes"]))).encode().hex()), test["bytes"]
            yield test, got == (expected if test["result"] == "valid" else None)
