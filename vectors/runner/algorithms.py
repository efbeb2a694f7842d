"""The algorithms under the formats, on Python's standard library alone: ECDSA P-256, AES-256-GCM, HKDF.

Written to be read and to judge with, never to protect anything: it is slow and does not run in constant time.
See FIPS 186-5 and NIST SP 800-186 (ECDSA, P-256), RFC 6979, FIPS 197 (AES), NIST SP 800-38D (GCM), RFC 5869 (HKDF).
"""

import hashlib
import hmac

P = 0xFFFFFFFF00000001000000000000000000000000FFFFFFFFFFFFFFFFFFFFFFFF
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)


def is_on_curve(point):
    x, y = point
    return 0 <= x < P and 0 <= y < P and (y * y - x * x * x + 3 * x - B) % P == 0


# Jacobian coordinates (X, Y, Z) stand for (X / Z^2, Y / Z^3); Z = 0 is the point at infinity.
def _double(p):
    x, y, z = p
    if z == 0 or y == 0:
        return (0, 1, 0)
    s = 4 * x * y * y % P
    m = 3 * (x - z * z) * (x + z * z) % P
    x3 = (m * m - 2 * s) % P
    return (x3, (m * (s - x3) - 8 * pow(y, 4, P)) % P, 2 * y * z % P)


def _add(p, q):
    if p[2] == 0:
        return q
    if q[2] == 0:
        return p
    z1, z2 = p[2] * p[2] % P, q[2] * q[2] % P
    u1, u2 = p[0] * z2 % P, q[0] * z1 % P
    s1, s2 = p[1] * z2 * q[2] % P, q[1] * z1 * p[2] % P
    if u1 == u2:
        return _double(p) if s1 == s2 else (0, 1, 0)
    h, r = (u2 - u1) % P, (s2 - s1) % P
    h2 = h * h % P
    h3, v = h2 * h % P, u1 * h2 % P
    x3 = (r * r - h3 - 2 * v) % P
    return (x3, (r * (v - x3) - s1 * h3) % P, h * p[2] * q[2] % P)


def _combine(a, p, b, q):
    """a * p + b * q, as an affine point, or None at infinity."""
    jp, jq = (p[0], p[1], 1), (q[0], q[1], 1)
    both, total = _add(jp, jq), (0, 1, 0)
    for i in range(255, -1, -1):
        total = _double(total)
        bits = (a >> i & 1, b >> i & 1)
        if bits == (1, 1):
            total = _add(total, both)
        elif bits == (1, 0):
            total = _add(total, jp)
        elif bits == (0, 1):
            total = _add(total, jq)
    if total[2] == 0:
        return None
    inverse = pow(total[2], -1, P)
    return (total[0] * inverse**2 % P, total[1] * inverse**3 % P)


def ecdsa_verify(public, data, signature):
    """ECDSA P-256 with SHA-256; the signature is r and s of 32 bytes each, and s may be high."""
    if len(signature) != 64 or not is_on_curve(public):
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < N and 0 < s < N):
        return False
    w, e = pow(s, -1, N), int.from_bytes(hashlib.sha256(data).digest(), "big")
    point = _combine(e * w % N, G, r * w % N, public)
    return point is not None and point[0] % N == r


def ecdsa_public(private):
    return _combine(private, G, 0, G)


def ecdsa_sign(private, data):
    """With the nonce of RFC 6979, and s as it comes."""
    digest = hashlib.sha256(data).digest()
    e = int.from_bytes(digest, "big")
    seed = private.to_bytes(32, "big") + (e % N).to_bytes(32, "big")
    k, v = b"\0" * 32, b"\1" * 32
    mac = lambda data: hmac.new(k, data, hashlib.sha256).digest()
    for step in (b"\0", b"\1"):
        k = mac(v + step + seed)
        v = mac(v)
    while True:
        v = mac(v)
        nonce = int.from_bytes(v, "big")
        if 0 < nonce < N:
            r = _combine(nonce, G, 0, G)[0] % N
            s = pow(nonce, -1, N) * (e + r * private) % N
            if r and s:
                return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        k = mac(v + b"\0")
        v = mac(v)


def _times_x(byte):
    return (byte << 1 ^ (0x11B if byte & 0x80 else 0)) & 0xFF


def _sbox():
    # Powers of the generator 3, and so logarithms and inverses.
    power, log, value = [0] * 255, [0] * 256, 1
    for i in range(255):
        power[i], log[value] = value, i
        value ^= _times_x(value)
    box = []
    for byte in range(256):
        b = power[(255 - log[byte]) % 255] if byte else 0
        box.append(b ^ (b << 1 | b >> 7) & 0xFF ^ (b << 2 | b >> 6) & 0xFF ^ (b << 3 | b >> 5) & 0xFF ^ (b << 4 | b >> 4) & 0xFF ^ 0x63)
    return bytes(box)


SBOX = _sbox()
DOUBLED = bytes(_times_x(byte) for byte in range(256))


def _round_keys(key):
    words, rcon = [key[i : i + 4] for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = bytes(SBOX[b] for b in word[1:] + word[:1])
            word, rcon = bytes([word[0] ^ rcon]) + word[1:], _times_x(rcon)
        elif i % 8 == 4:
            word = bytes(SBOX[b] for b in word)
        words.append(bytes(a ^ b for a, b in zip(words[-8], word)))
    return [b"".join(words[i : i + 4]) for i in range(0, 60, 4)]


def _encrypt_block(keys, block):
    state = bytes(a ^ b for a, b in zip(block, keys[0]))
    for turn, key in enumerate(keys[1:], 1):
        # SubBytes and ShiftRows: byte i comes from column (i // 4 + row) with row = i % 4.
        state = bytes(SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16))
        if turn < 14:
            mixed = []
            for c in range(0, 16, 4):
                a = state[c : c + 4]
                every = a[0] ^ a[1] ^ a[2] ^ a[3]
                mixed += [a[i] ^ every ^ DOUBLED[a[i] ^ a[(i + 1) % 4]] for i in range(4)]
            state = bytes(mixed)
        state = bytes(a ^ b for a, b in zip(state, key))
    return state


def _gf_multiply(x, y):
    z = 0
    for i in range(127, -1, -1):
        if x >> i & 1:
            z ^= y
        y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
    return z


def _pad16(data):
    return data + b"\0" * (-len(data) % 16)


def _gcm(key, iv, aad, data, decrypting):
    keys = _round_keys(key)
    h = int.from_bytes(_encrypt_block(keys, b"\0" * 16), "big")
    out = bytearray()
    for i in range(0, len(data), 16):
        stream = _encrypt_block(keys, iv + (i // 16 + 2).to_bytes(4, "big"))
        out += bytes(a ^ b for a, b in zip(data[i : i + 16], stream))
    encrypted = data if decrypting else bytes(out)
    hashed, total = _pad16(aad) + _pad16(encrypted) + (8 * len(aad)).to_bytes(8, "big") + (8 * len(encrypted)).to_bytes(8, "big"), 0
    for i in range(0, len(hashed), 16):
        total = _gf_multiply(total ^ int.from_bytes(hashed[i : i + 16], "big"), h)
    first = int.from_bytes(_encrypt_block(keys, iv + b"\0\0\0\1"), "big")
    return bytes(out), (total ^ first).to_bytes(16, "big")


def gcm_encrypt(key, iv, aad, plaintext):
    encrypted, tag = _gcm(key, iv, aad, plaintext, False)
    return encrypted + tag


def gcm_decrypt(key, iv, aad, encrypted):
    """The plaintext, or None where the tag of 16 bytes is not right."""
    if len(key) != 32 or len(iv) != 12 or len(encrypted) < 16:
        return None
    plaintext, tag = _gcm(key, iv, aad, encrypted[:-16], True)
    return plaintext if hmac.compare_digest(tag, encrypted[-16:]) else None


def hkdf(secret, info, length=32, salt=b""):
    key = hmac.new(salt or b"\0" * 32, secret, hashlib.sha256).digest()
    out, block = b"", b""
    while len(out) < length:
        block = hmac.new(key, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256).digest()
        out += block
    return out[:length]
