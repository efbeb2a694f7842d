"""docs/spec/request-signing.md sections 11 and 16: one-time codes as people type them, and the hash under which they are kept."""

import hashlib
import string

from strict_bytes import ENCODERS

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
TYPED = set(string.ascii_letters + string.digits + " -")
READ_AS = str.maketrans("OIL", "011", " -")


def hash_code(label, text):
    if not 26 <= len(text) <= 64 or not set(text) <= TYPED:
        return None
    code = text.upper().translate(READ_AS)
    if len(code) != 26 or not set(code) <= set(ALPHABET):
        return None
    return ENCODERS["base64url"](hashlib.sha256(f"{label}\0{code}".encode()).digest())


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            yield test, hash_code(group["label"], test["code"]) == test.get("hash")
