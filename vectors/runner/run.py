#!/usr/bin/env python3
"""Judges the vectors in the folder above in another language than the code, from docs/spec alone. Python 3.9 and later, nothing else.

    python3 vectors/runner/run.py                    all files that it knows
    python3 vectors/runner/run.py vault              those whose name holds the word
    python3 vectors/runner/run.py --vectors FOLDER   those of another folder

Prints a line for each file and the sum; ends with 1 if a case is not as the file says.
"""

import json
import pathlib
import sys

import audit
import canonical
import canonical_json
import checkpoint
import fingerprint
import keys
import merkle
import one_time_code
import request_signing
import rotation
import strict_bytes
import vault
import wycheproof

JUDGES = {
    "audit.json": audit.judge,
    "bytes.json": strict_bytes.judge,
    "canonical.json": canonical.judge,
    "canonical-json.json": canonical_json.judge,
    "checkpoint.json": checkpoint.judge,
    "fingerprint.json": fingerprint.judge,
    "keys.json": keys.judge,
    "merkle.json": merkle.judge,
    "one-time-code.json": one_time_code.judge,
    "request-signing.json": request_signing.judge,
    "rfc9421-ecdsa-p256.json": request_signing.judge_rfc9421,
    "rotation.json": rotation.judge,
    "vault.json": vault.judge,
    "wycheproof/aes_gcm_test.json": wycheproof.judge_gcm,
    "wycheproof/ecdsa_secp256r1_sha256_p1363_test.json": wycheproof.judge_ecdsa,
    "wycheproof/hkdf_sha256_test.json": wycheproof.judge_hkdf,
    "wycheproof/hmac_sha256_test.json": wycheproof.judge_hmac,
    "wycheproof/pbkdf2_hmacsha256_test.json": wycheproof.judge_pbkdf2,
}


def run(folder, name, judge):
    document = json.loads((folder / name).read_text(encoding="utf-8"))
    right, wrong = 0, 0
    for test, agrees in judge(document):
        right += agrees
        wrong += not agrees
        if not agrees:
            print(f"wrong {name} {test.get('tcId', test.get('name', ''))} {test.get('comment', '')}")
    missing = document.get("numberOfTests", right + wrong) - right - wrong
    if missing:
        print(f"wrong {name}: {missing} cases were not judged")
    print(f"{'ok   ' if wrong == missing == 0 else 'wrong'} {name}: {right} as they should be, {wrong + missing} not")
    return right, wrong + missing


def main(words):
    folder = pathlib.Path(__file__).resolve().parent.parent
    if words[:1] == ["--vectors"]:
        folder, words = pathlib.Path(words[1]), words[2:]
    names = [name for name in JUDGES if not words or any(word in name for word in words)]
    results = [run(folder, name, JUDGES[name]) for name in names]
    others = sorted({path.relative_to(folder).as_posix() for path in folder.rglob("*.json")} - set(JUDGES))
    if others and not words:
        print(f"not judged here: {', '.join(others)}")
    right, wrong = sum(result[0] for result in results), sum(result[1] for result in results)
    print(f"vectors: {right} passed, {wrong} failed")
    return 0 if right and not wrong else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
