"""RFC 4648 and UTF-8 read strictly: one text for one byte string."""

import base64

ENCODERS = {
    "base64": lambda data: base64.b64encode(data).decode(),
    "base64url": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
}


def decode(alphabet, text):
    """The bytes, or None. Python's decoder is lenient; so what it read is written again and compared."""
    if not text.isascii():
        return None
    try:
        padded = text + "=" * (-len(text) % 4) if alphabet == "base64url" else text
        data = base64.b64decode(padded.replace("-", "+").replace("_", "/") if alphabet == "base64url" else padded)
    except ValueError:
        return None
    return data if ENCODERS[alphabet](data) == text else None


def decode_utf8(data):
    try:
        return data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return None


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            valid = test["result"] == "valid"
            if group["type"] == "Decode":
                found = decode(group["alphabet"], test["text"])
                yield test, found == bytes.fromhex(test["bytes"]) if valid else found is None
            else:
                found = decode_utf8(bytes.fromhex(test["bytes"]))
                yield test, found == test["text"] if valid else found is None
