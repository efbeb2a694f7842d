"""Who judges the judge: the algorithms of this runner against the cases of Wycheproof."""

import hashlib
import hmac

from algorithms import ecdsa_verify, gcm_decrypt, gcm_encrypt, hkdf


def _hex(test, *names):
    return [bytes.fromhex(test[name]) for name in names]


def judge_ecdsa(document):
    for group in document["testGroups"]:
        point = bytes.fromhex(group["publicKey"]["uncompressed"])
        public = (int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big"))
        for test in group["tests"]:
            message, signature = _hex(test, "msg", "sig")
            yield test, ecdsa_verify(public, message, signature) == (test["result"] == "valid")


def judge_gcm(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            key, iv, aad, message, encrypted, tag = _hex(test, "key", "iv", "aad", "msg", "ct", "tag")
            fits = group["keySize"] == 256 and group["ivSize"] == 96
            expected = message if fits and test["result"] == "valid" else None
            alike = expected is None or gcm_encrypt(key, iv, aad, message) == encrypted + tag
            yield test, gcm_decrypt(key, iv, aad, encrypted + tag) == expected and alike


def judge_hmac(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            key, message, tag = _hex(test, "key", "msg", "tag")
            computed = hmac.new(key, message, hashlib.sha256).digest()[: group["tagSize"] // 8]
            yield test, (computed == tag) == (test["result"] == "valid")


def judge_hkdf(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            secret, salt, info, okm = _hex(test, "ikm", "salt", "info", "okm")
            fits = test["size"] <= 255 * 32
            yield test, (fits and hkdf(secret, info, test["size"], salt) == okm) == (test["result"] == "valid")


def judge_pbkdf2(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            password, salt, key = _hex(test, "password", "salt", "dk")
            computed = hashlib.pbkdf2_hmac("sha256", password, salt, test["iterationCount"], test["dkLen"])
            yield test, (computed == key) == (test["result"] == "valid")
