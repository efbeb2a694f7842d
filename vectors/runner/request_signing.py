"""docs/spec/request-signing.md sections 2 to 5, 14 and 16: base, hashes, key ids, signatures, both carriages, and the proof of a new key."""

import base64
import hashlib
import json
import re

from algorithms import ecdsa_public, ecdsa_sign, ecdsa_verify

COVERED = [
    "anthropic-beta",
    "anthropic-user-profile-id",
    "anthropic-version",
    "anthropic-workspace-id",
    "idempotency-key",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "x-keyguard-challenge",
    "x-keyguard-credential",
    "x-keyguard-token",
]


def unbase64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def base64url(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def point(jwk):
    return tuple(int.from_bytes(unbase64url(jwk[name]), "big") for name in "xy")


def thumbprint(jwk):
    text = '{{"crv":"{crv}","kty":"{kty}","x":"{x}","y":"{y}"}}'.format(**jwk)
    return base64url(hashlib.sha256(text.encode()).digest())


def params(case):
    names = ["@method", "@authority", "@path", "@query", "content-digest"]
    names += [name for name in ["content-type", *COVERED] if name in case["headers"]]
    items = " ".join(f'"{name}"' for name in names)
    return f'({items});created={case["created"]};keyid="{case["keyId"]}";nonce="{case["nonce"]}";tag="{case["tag"]}"'


def signature_base(case, body_sha256):
    lines = [
        f'"@method": {case["method"]}',
        f'"@authority": {case["authority"]}',
        f'"@path": {case["path"]}',
        f'"@query": ?{case["query"]}',
        f'"content-digest": sha-256=:{body_sha256}:',
    ]
    lines += [f'"{name}": {case["headers"][name]}' for name in ["content-type", *COVERED] if name in case["headers"]]
    return "\n".join([*lines, f'"@signature-params": {params(case)}'])


def rotation_proof_text(proof):
    return "\n".join(["keyguard-rotate-proof-v1", proof["oldKeyId"], proof["newKeyId"], proof["timestamp"], proof["nonce"]])


# What stands in each field in the place of a value, and the grammar of the values.
VALUES = {
    "created": "[1-9][0-9]{9}",
    "keyid": "[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]",
    "nonce": "[A-Za-z0-9_-]{21}[AQgw]",
    "tag": '[^"]*',
    "digest": "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=",
    "signature": "[A-Za-z0-9+/]{85}[AQgw]==",
}


def _matches(template, text):
    """The values of a template, each written {like_this} there; None where the text is not the template to the letter."""
    pattern = "".join(
        f"(?P<{part[1:-1]}>{VALUES[part[1:-1]]})" if part[:1] == "{" else re.escape(part) for part in re.split(r"(\{\w+\})", template)
    )
    found = re.fullmatch(pattern, text)
    return found and found.groupdict()


def read_fields(fields, headers):
    """Section 3, "The RFC 9421 carriage": what the three fields hold, or None where they are anything but its template."""
    received = {}
    for name, value in fields:
        if name.lower() in received:
            return None
        received[name.lower()] = value
    if set(received) != {"signature-input", "signature", "content-digest"}:
        return None
    items = params({"headers": headers, "created": "", "keyId": "", "nonce": "", "tag": ""}).split(";")[0]
    read = (
        _matches(f'keyguard={items};created={{created}};keyid="{{keyid}}";nonce="{{nonce}}";tag="{{tag}}"', received["signature-input"]),
        _matches("keyguard=:{signature}:", received["signature"]),
        _matches("sha-256=:{digest}:", received["content-digest"]),
    )
    return None if None in read else {**read[0], **read[1], **read[2]}


def verdict_on_fields(case, test, document):
    """What a verifier whose policy takes the RFC 9421 carriage says: None, or the code of its refusal."""
    read = read_fields(test["fields"], test["headers"])
    if read is None:
        return "malformed_request"
    signed = {**case, "headers": test["headers"], "created": read["created"], "keyId": read["keyid"], "nonce": read["nonce"], "tag": test["tag"]}
    valid = (
        read["keyid"] == document["keyId"]
        and read["tag"] == test["tag"]
        and read["digest"] == base64.b64encode(hashlib.sha256(case["body"].encode()).digest()).decode()
        and ecdsa_verify(point(document["publicJwk"]), signature_base(signed, read["digest"]).encode(), base64.b64decode(read["signature"]))
    )
    return None if valid else "signature_invalid"


def _flipped(data, at):
    return bytes(byte ^ (1 if i == at else 0) for i, byte in enumerate(data))


def judge(document):
    public, private = point(document["publicJwk"]), int.from_bytes(unbase64url(document["privateD"]), "big")
    yield {"comment": "the key and its id"}, ecdsa_public(private) == public and thumbprint(document["publicJwk"]) == document["keyId"]
    for case in document["cases"]:
        expected = case["expected"]
        digest = base64.b64encode(hashlib.sha256(case["body"].encode()).digest()).decode()
        base = signature_base(case, digest)
        signature = ecdsa_sign(private, base.encode())
        text = base64.b64encode(signature).decode()
        yield case, (
            digest == expected["bodySha256"]
            and base == expected["signatureBase"]
            and hashlib.sha256(base.encode()).hexdigest() == expected["signatureBaseSha256Hex"]
            and text == expected["signatureRfc6979"]
            and expected["headers"]
            == {
                "x-keyguard-version": "1",
                "x-keyguard-key-id": case["keyId"],
                "x-keyguard-timestamp": str(case["created"]),
                "x-keyguard-nonce": case["nonce"],
                "x-keyguard-body-sha256": digest,
                "x-keyguard-signature": text,
            }
            and expected["rfc9421"]
            == {
                "Signature-Input": f"keyguard={params(case)}",
                "Signature": f"keyguard=:{text}:",
                "Content-Digest": f"sha-256=:{digest}:",
            }
            and ecdsa_verify(public, base.encode(), signature)
            and not ecdsa_verify(public, base.encode() + b"\n", signature)
            and not ecdsa_verify(public, base.encode(), _flipped(signature, 40))
        )
    yield {"comment": "the proof of a new key"}, judge_rotation(document, document["rotationProof"])
    cases = {case["name"]: case for case in document["cases"]}
    for test in document["rfc9421Tests"]:
        verdict = verdict_on_fields(cases[test["case"]], test, document)
        yield test, verdict == test.get("code") and (verdict is None) == (test["result"] == "valid")


def judge_rotation(document, proof):
    public, private = point(proof["newPublicJwk"]), int.from_bytes(unbase64url(proof["newPrivateD"]), "big")
    text, expected = rotation_proof_text(proof).encode(), proof["expected"]
    signature = ecdsa_sign(private, text)
    request = next(case for case in document["cases"] if case["tag"] == "keyguard-rotate-v1")
    body = json.loads(request["body"])
    return (
        ecdsa_public(private) == public
        and thumbprint(proof["newPublicJwk"]) == proof["newKeyId"]
        and text == expected["text"].encode()
        and hashlib.sha256(text).hexdigest() == expected["textSha256Hex"]
        and base64.b64encode(signature).decode() == expected["proofRfc6979"] == body["proof"]
        and body["jwk"] == proof["newPublicJwk"]
        and (proof["oldKeyId"], proof["timestamp"], proof["nonce"])
        == (request["keyId"], str(request["created"]), request["nonce"])
        and ecdsa_verify(public, text, signature)
        and not ecdsa_verify(public, text + b"\n", signature)
        and not ecdsa_verify(point(document["publicJwk"]), text, signature)
    )


def judge_rfc9421(document):
    public = point(document["keyJwk"])
    yield {"comment": "the key id"}, thumbprint(document["keyJwk"]) == document["thumbprint"]
    for vector in document["vectors"]:
        verdict = ecdsa_verify(public, vector["base"].encode(), base64.b64decode(vector["sigB64"]))
        yield vector, verdict == vector["valid"]
