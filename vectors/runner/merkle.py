"""Merkle trees of RFC 6962: roots, proofs of inclusion and of consistency (checked as RFC 9162 section 2.1 says)."""

import hashlib


def _sha256(data):
    return hashlib.sha256(data).digest()


def leaf_hash(data):
    return _sha256(b"\0" + data)


def node_hash(left, right):
    return _sha256(b"\1" + left + right)


def root(hashes):
    if not hashes:
        return _sha256(b"")
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(root(hashes[:split]), root(hashes[split:]))


def is_included(leaf, index, size, expected, proof):
    if not 0 <= index < size or any(len(step) != 32 for step in proof):
        return False
    at, last, value = index, size - 1, leaf_hash(leaf)
    for step in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            value = node_hash(step, value)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            value = node_hash(value, step)
        at, last = at >> 1, last >> 1
    return last == 0 and value == expected


def is_consistent(old_size, old_root, new_size, new_root, proof):
    if not 0 <= old_size <= new_size or any(len(step) != 32 for step in (*proof, old_root, new_root)):
        return False
    if old_size == 0:
        # Every tree begins with the empty one, and there is nothing to prove.
        return not proof and old_root == _sha256(b"") and (new_size > 0 or new_root == old_root)
    if old_size == new_size:
        return not proof and old_root == new_root
    steps = list(proof)
    if old_size & (old_size - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        return False
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(step, old), node_hash(step, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, step)
        at, last = at >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def judge(document):
    for group in document["testGroups"]:
        for test in group["tests"]:
            valid = test["result"] == "valid"
            if group["type"] == "MerkleRoot":
                hashes = [leaf_hash(bytes.fromhex(leaf)) for leaf in group["leaves"][: test["size"]]]
                yield test, (root(hashes).hex() == test["root"]) == valid
            elif group["type"] == "MerkleInclusion":
                proof = [bytes.fromhex(step) for step in test["proof"]]
                leaf, expected = bytes.fromhex(test["leaf"]), bytes.fromhex(test["root"])
                yield test, is_included(leaf, test["index"], test["size"], expected, proof) == valid
            else:
                proof = [bytes.fromhex(step) for step in test["proof"]]
                roots = bytes.fromhex(test["oldRoot"]), bytes.fromhex(test["newRoot"])
                yield test, is_consistent(test["oldSize"], roots[0], test["newSize"], roots[1], proof) == valid
