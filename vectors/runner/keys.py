"""docs/spec/request-signing.md section 2: the one form of a public key, its id, and whether it is a point of P-256."""

from algorithms import is_on_curve
from request_signing import point, thumbprint
from strict_bytes import decode


def is_jwk(value):
    if not isinstance(value, dict) or sorted(value) != ["crv", "kty", "x", "y"]:
        return False
    if (value["kty"], value["crv"]) != ("EC", "P-256"):
        return False
    coordinates = [decode("base64url", value[name]) if isinstance(value[name], str) else None for name in "xy"]
    return all(each is not None and len(each) == 32 for each in coordinates)


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            valid, jwk = test["result"] == "valid", test["jwk"]
            if group["type"] == "ParseJwk":
                yield test, is_jwk(jwk) == valid and (not valid or thumbprint(jwk) == test["keyId"])
            else:
                yield test, is_jwk(jwk) and is_on_curve(point(jwk)) == valid
