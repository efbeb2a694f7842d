/**
 * What must hold wherever core runs, by its public names only: the same suite on Node's WebCrypto, on node:crypto, on a
 * WebCrypto that is not the platform's, in JavaScript alone, and in a real browser.
 *
 * A file that hands in a platform is next to the package that owns it.
 */
import { describe, expect, it } from 'vitest';
import { chainAfter, chainStart, sealEntries, verifyRecords, webCryptoMacKey } from '@keyguard/core/audit';
import { fromBase64, fromBase64Url, toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { rotationProofText, signatureBase, type CoveredHeader, type SignatureTag } from '@keyguard/core/canonical';
import { fingerprintDigest, type HmacSha256 } from '@keyguard/core/fingerprint';
import { importKeyPair, parsePublicJwk, signingKey, thumbprint } from '@keyguard/core/keys';
import type { AuditMacKey, AuditRecord, Bytes, Primitives, Random, SigningKey, VaultPrimitives } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { webCryptoRandom } from '@keyguard/core/system';
import { aesKeyProvider, open, passphraseKey, rewrap, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import { readSignedHead, verifySignature } from '@keyguard/core/verify';
import auditVectors from '../../../vectors/audit.json' with { type: 'json' };
import fingerprints from '../../../vectors/fingerprint.json' with { type: 'json' };
import golden from '../../../vectors/request-signing.json' with { type: 'json' };
import rfc9421 from '../../../vectors/rfc9421-ecdsa-p256.json' with { type: 'json' };
import vaultVectors from '../../../vectors/vault.json' with { type: 'json' };
import wycheproof from '../../../vectors/wycheproof/ecdsa_secp256r1_sha256_p1363_test.json' with { type: 'json' };

export interface Platform {
  readonly primitives: Primitives;
  /** A new device key, made the way this platform makes them. */
  newKey(): Promise<SigningKey>;
  /** For the signer's nonces. */
  readonly random: Random;
  /** `null` where HMAC is none of its business. */
  readonly hmac: HmacSha256 | null;
  /** What vault and audit run on; `null` where there is no WebCrypto. */
  readonly crypto: Crypto | null;
}

export const fromHex = (hex: string): Bytes => new Uint8Array((hex.match(/../g) ?? []).map((byte) => Number.parseInt(byte, 16)));
export const toHex = (bytes: Uint8Array): string => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');

const invalidSignature = { name: 'RejectedError', code: 'signature_invalid' };
const invalidJwk = { name: 'RejectedError', code: 'jwk_invalid' };
const TAGS: readonly SignatureTag[] = ['keyguard-v1', 'keyguard-enroll-v1', 'keyguard-rotate-v1'];
const doesNotOpen = { name: 'RejectedError', code: 'vault_open_failed', message: 'The value cannot be opened.', detail: undefined };

// An implementation may answer at once or later, and throw at once or later.
const later = async <T>(call: () => T | Promise<T>): Promise<T> => call();

export function portableSuite(name: string, platform: Platform): void {
  describe(`core on ${name}`, () => {
    signatures(platform);
    if (platform.hmac !== null) fingerprintsOn(platform.hmac);
    if (platform.crypto !== null) {
      keys(platform.primitives, platform.crypto);
      vault({ crypto: platform.crypto });
      audit(platform.crypto);
    }
  });
}

function signatures({ primitives, newKey, random }: Platform): void {
  const publicKey = parsePublicJwk(golden.publicJwk);

  it('hashes what it is given, and gives a hash of its own', async () => {
    expect(toHex(await primitives.sha256(new Uint8Array(0)))).toBe('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
    const data = utf8('xabcx').subarray(1, 4);
    const hash = await primitives.sha256(data);
    expect(toHex(hash)).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad');
    const again = await primitives.sha256(data);
    hash.fill(0);
    expect(toHex(again)).toMatch(/^ba78/);
  });

  it.each(golden.cases)('golden request $name: the same hash and base, its signature verifies, and nothing else does', async (vector) => {
    const { expected, method, authority, path, query, created, nonce, keyId } = vector;
    const tag = vector.tag as SignatureTag;
    const body = utf8(vector.body);
    const headers: Record<string, string> = { ...vector.headers };
    const { 'content-type': contentType = null, ...others } = headers as Record<string, string> & { 'content-type'?: string };
    const coveredHeaders: CoveredHeader[] = Object.entries(others);
    expect(toBase64(await primitives.sha256(body))).toBe(expected.bodySha256);
    const parts = { method, authority, path, query, bodySha256: expected.bodySha256, contentType, coveredHeaders, timestamp: String(created), keyId, nonce };
    expect(signatureBase(parts, tag)).toBe(expected.signatureBase);

    const rawHeaders = [...Object.entries(headers), ...Object.entries(expected.headers)].flat();
    const head = readSignedHead({ method, target: query === '' ? path : `${path}?${query}`, rawHeaders }, [authority]);
    const key = await primitives.importPublicKey(publicKey);
    await verifySignature(head, body, key, tag, primitives);
    for (const forged of [{ ...head, path: `${path}x` }, { ...head, method: 'PUT' }, { ...head, nonce: 'A'.repeat(22) }]) {
      await expect(verifySignature(forged, body, key, tag, primitives)).rejects.toMatchObject(invalidSignature);
    }
    await expect(verifySignature(head, utf8('another body'), key, tag, primitives)).rejects.toMatchObject(invalidSignature);
    for (const other of TAGS.filter((one) => one !== tag)) {
      await expect(verifySignature(head, body, key, other, primitives)).rejects.toMatchObject(invalidSignature);
    }
  });

  it('the golden proof of a new key: its text, its signature, and nothing else verifies', async () => {
    const { newPublicJwk, oldKeyId, newKeyId, timestamp, nonce, expected } = golden.rotationProof;
    const newKey = parsePublicJwk(newPublicJwk);
    expect(await thumbprint(newKey, primitives)).toBe(newKeyId);
    const parts = { oldKeyId, newKeyId, timestamp, nonce };
    expect(rotationProofText(parts)).toBe(expected.text);
    expect(toHex(await primitives.sha256(utf8(expected.text)))).toBe(expected.textSha256Hex);
    const proof = fromBase64(expected.proofRfc6979)!;
    const key = await primitives.importPublicKey(newKey);
    expect(await primitives.verify(key, utf8(rotationProofText(parts)), proof)).toBe(true);
    for (const other of [{ ...parts, oldKeyId: newKeyId, newKeyId: oldKeyId }, { ...parts, timestamp: '1735689601' }, { ...parts, nonce: 'A'.repeat(22) }]) {
      expect(await primitives.verify(key, utf8(rotationProofText(other)), proof)).toBe(false);
    }
    expect(await primitives.verify(await primitives.importPublicKey(publicKey), utf8(expected.text), proof)).toBe(false);
  });

  it('names keys by the thumbprints on record', async () => {
    expect(await thumbprint(publicKey, primitives)).toBe(golden.keyId);
    const { crv, kty, x, y } = rfc9421.keyJwk;
    expect(await thumbprint(parsePublicJwk({ crv, kty, x, y }), primitives)).toBe(rfc9421.thumbprint);
  });

  it.each(rfc9421.vectors)('RFC 9421 $id verifies, and not once a byte is changed', async ({ base, sigB64, valid }) => {
    const { crv, kty, x, y } = rfc9421.keyJwk;
    const key = await primitives.importPublicKey(parsePublicJwk({ crv, kty, x, y }));
    const signature = fromBase64(sigB64)!;
    expect(await primitives.verify(key, utf8(base), signature)).toBe(valid);
    expect(await primitives.verify(key, utf8(`${base} `), signature)).toBe(false);
    signature[40]! ^= 1;
    expect(await primitives.verify(key, utf8(base), signature)).toBe(false);
  });

  it('judges every Wycheproof signature of 64 bytes as it should, and takes no other length', async () => {
    let judged = 0;
    for (const { publicKey: given, tests } of wycheproof.testGroups) {
      const point = fromHex(given.uncompressed);
      const jwk = { crv: 'P-256', kty: 'EC', x: toBase64Url(point.subarray(1, 33)), y: toBase64Url(point.subarray(33)) } as const;
      const key = await primitives.importPublicKey(jwk);
      for (const { tcId, msg, sig, result } of tests) {
        const verdict = await later(() => primitives.verify(key, fromHex(msg), fromHex(sig)));
        expect(verdict, `tcId ${tcId}`).toBe(result === 'valid');
        judged += 1;
      }
    }
    expect(judged).toBe(wycheproof.numberOfTests);
  });

  it.each([
    ['off the curve', golden.publicJwk.x, `${golden.publicJwk.y.slice(0, -2)}A0`],
    ['the point (0, 0)', 'A'.repeat(43), 'A'.repeat(43)],
    ['coordinates past the field', `${'_'.repeat(42)}8`, `${'_'.repeat(42)}8`],
  ])('takes no public key that is %s', async (_, x, y) => {
    const jwk = parsePublicJwk({ crv: 'P-256', kty: 'EC', x, y });
    await expect(later(() => primitives.importPublicKey(jwk))).rejects.toMatchObject(invalidJwk);
  });

  it('takes no second spelling of a coordinate', async () => {
    const { x, y } = publicKey;
    // The last character holds two bits that belong to no byte.
    const stray = x.slice(0, -1) + String.fromCharCode(x.charCodeAt(x.length - 1) + 1);
    for (const spelling of [`${x}=`, stray, x.replaceAll('-', '+').replaceAll('_', '/')]) {
      if (spelling === x) continue;
      await expect(later(() => primitives.importPublicKey({ crv: 'P-256', kty: 'EC', x: spelling, y }))).rejects.toMatchObject(invalidJwk);
    }
  });

  it('verifies nothing but signatures: any 64 bytes answer false', async () => {
    const key = await primitives.importPublicKey(publicKey);
    const order = fromBase64Url('_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE')!;
    const zero = new Uint8Array(32);
    for (const [r, s] of [[zero, zero], [order, order], [zero, order], [new Uint8Array(32).fill(255), new Uint8Array(32).fill(1)]]) {
      expect(await later(() => primitives.verify(key, utf8('data'), new Uint8Array([...r!, ...s!])))).toBe(false);
    }
  });

  it('verifies what it signed itself, and nothing of it can be changed', async () => {
    const target = '/proxy/openai/v1/chat/completions?stream=1';
    const headers = [['content-type', 'application/json'], ['openai-beta', 'assistants=v2'], ['accept', '*/*']] as const;
    const body = utf8('{"text":"h\u00e9llo \u{1f511}"}');
    // About half of these signatures have a high s, which must verify as well.
    for (let i = 0; i < 10; i += 1) {
      const key = await newKey();
      const sign = createSigner({ key, primitives, random });
      const signed = await sign({ method: 'POST', authority: 'api.example.com', target, headers, body });
      expect(signed['x-keyguard-key-id']).toBe(await thumbprint(key.publicKey, primitives));
      const rawHeaders = [...headers, ...Object.entries(signed)].flat();
      const head = readSignedHead({ method: 'POST', target, rawHeaders }, ['api.example.com']);
      const verifyKey = await primitives.importPublicKey(key.publicKey);
      await verifySignature(head, body, verifyKey, 'keyguard-v1', primitives);
      const flipped = head.signature.slice();
      flipped[i * 6]! ^= 1;
      await expect(verifySignature({ ...head, signature: flipped }, body, verifyKey, 'keyguard-v1', primitives)).rejects.toMatchObject(invalidSignature);
      const elsewhere = readSignedHead({ method: 'POST', target, rawHeaders }, ['other.example.com']);
      await expect(verifySignature(elsewhere, body, verifyKey, 'keyguard-v1', primitives)).rejects.toMatchObject(invalidSignature);
      const another = await primitives.importPublicKey(publicKey);
      await expect(verifySignature(head, body, another, 'keyguard-v1', primitives)).rejects.toMatchObject(invalidSignature);
    }
  });
}

interface DigestVector {
  readonly tcId: number;
  readonly salt: string;
  readonly saltVersion: number;
  readonly signals: Readonly<Record<string, string>>;
  readonly digest?: string;
}

function fingerprintsOn(hmac: HmacSha256): void {
  it('gives the fingerprints on record', async () => {
    const group = fingerprints.testGroups.find(({ type }) => type === 'FingerprintDigest')!;
    let compared = 0;
    for (const { tcId, salt, saltVersion, signals, digest } of group.tests as unknown as DigestVector[]) {
      if (digest === undefined) continue;
      expect(await fingerprintDigest(signals, { salt: fromHex(salt), saltVersion, hmac }), `tcId ${tcId}`).toBe(digest);
      compared += 1;
    }
    expect(compared).toBeGreaterThan(5);
  });
}

function keys(primitives: Primitives, crypto: Crypto): void {
  it('signs with a key that came in as PKCS #8, which no one can take out again', async () => {
    const pair = (await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign', 'verify'])) as CryptoKeyPair;
    const pkcs8 = new Uint8Array(await crypto.subtle.exportKey('pkcs8', pair.privateKey));
    const { crv, kty, x, y } = await crypto.subtle.exportKey('jwk', pair.publicKey);
    const imported = await importKeyPair(pkcs8, parsePublicJwk({ crv, kty, x, y }), crypto);
    await expect(crypto.subtle.exportKey('pkcs8', imported.privateKey)).rejects.toThrow(/extractable/i);
    await expect(crypto.subtle.exportKey('jwk', imported.privateKey)).rejects.toThrow(/extractable/i);
    const key = await signingKey(imported, crypto);
    const verifyKey = await primitives.importPublicKey(key.publicKey);
    expect(await primitives.verify(verifyKey, utf8('data'), await key.sign(utf8('data')))).toBe(true);
  });
}

interface OpenVector extends Record<'ciphertext' | 'wrappedDek' | 'kekId' | 'plaintext' | 'result', string> {
  readonly tcId: number;
  readonly place: VaultPlace;
}
interface PassphraseVector extends Record<'passphrase' | 'kekId' | 'context' | 'wrapped' | 'key' | 'result' | 'comment', string> {
  readonly tcId: number;
  readonly iterations?: number;
}

/** The vault on other primitives than those of a platform's WebCrypto. */
export function portableVaultSuite(name: string, primitives: VaultPrimitives): void {
  describe(`the vault on ${name}`, () => {
    vault({ primitives });
  });
}

function vault(on: { readonly crypto?: Crypto; readonly primitives?: VaultPrimitives }): void {
  const [openGroup, passphraseGroup] = vaultVectors.testGroups as unknown as [
    { kekId: string; kek: string; tests: OpenVector[] },
    { tests: PassphraseVector[] },
  ];
  const crypto = on.crypto === undefined ? {} : { crypto: on.crypto };
  const place: VaultPlace = { deploymentId: 'd', table: 't', row: 'r', column: 'c', version: 1, purpose: 'p' };

  it('opens every envelope on record that is one, and no other', async () => {
    const keyProvider = await aesKeyProvider({ kekId: openGroup.kekId, key: fromHex(openGroup.kek), ...on });
    for (const { tcId, result, plaintext, ...v } of openGroup.tests) {
      const sealed = { ciphertext: fromHex(v.ciphertext), wrappedDek: fromHex(v.wrappedDek), kekId: v.kekId };
      const opened = open(sealed, v.place, { keyProvider, ...on });
      if (result === 'valid') expect(toHex(await opened), `tcId ${tcId}`).toBe(plaintext);
      else await expect(opened, `tcId ${tcId}`).rejects.toMatchObject(doesNotOpen);
    }
  });

  it('unwraps under the passphrases on record, and refuses what is not to be derived', async () => {
    const judged = passphraseGroup.tests.filter(({ result, iterations }) => result === 'invalid' || iterations === 100_000);
    expect(judged.length).toBeGreaterThan(15);
    for (const { tcId, passphrase, kekId, wrapped, context, key, result } of judged) {
      const unwrap = async (): Promise<Bytes> => {
        const derived = await passphraseKey(passphrase, { kekId, header: fromHex(wrapped), ...crypto });
        return derived.keyProvider.unwrap({ kekId: 'root-1', bytes: fromHex(wrapped) }, fromHex(context));
      };
      if (result === 'valid') expect(toHex(await unwrap()), `tcId ${tcId}`).toBe(key);
      else await expect(unwrap(), `tcId ${tcId}`).rejects.toMatchObject(doesNotOpen);
    }
  }, 60_000);

  it('seals what opens again at its place and nowhere else, also after its key was wrapped anew', async () => {
    const random = webCryptoRandom(on.crypto);
    const from = await aesKeyProvider({ kekId: 'k1', key: random.bytes(32), ...on });
    const to = await aesKeyProvider({ kekId: 'k2', key: random.bytes(32), ...on });
    for (const length of [0, 1, 16, 1000, 70_000]) {
      const plaintext = new Uint8Array(length).fill(length & 255);
      const sealed = await seal(plaintext, place, { keyProvider: from, ...on });
      expect(toHex(await open(sealed, place, { keyProvider: from, ...on }))).toBe(toHex(plaintext));
      const moved = await rewrap(sealed, place, { from, to });
      expect(toHex(await open(moved, place, { keyProvider: to, ...on }))).toBe(toHex(plaintext));
      const changed: [SealedValue, VaultPlace][] = [
        [sealed, { ...place, row: 's' }],
        [sealed, { ...place, version: 2 }],
        [moved, place],
        [{ ...sealed, ciphertext: sealed.ciphertext.map((byte, i) => (i === 70 ? byte ^ 1 : byte)) }, place],
        [{ ...sealed, ciphertext: sealed.ciphertext.slice(0, -4) }, place],
      ];
      for (const [value, where] of changed) {
        await expect(open(value, where, { keyProvider: from, ...on })).rejects.toMatchObject(doesNotOpen);
      }
    }
  });
}

interface HexRecord extends Record<'bytes' | 'prevMac' | 'mac' | 'macKeyId', string> {
  readonly seq: number;
  readonly handover?: { readonly macKeyId: string; readonly mac: string };
}
interface AuditVector {
  readonly tcId: number;
  readonly result: string;
  readonly from?: { readonly seq: number; readonly prevMac: string; readonly macKeyId: string | null };
  readonly records: readonly HexRecord[];
  readonly invalidSeq?: number;
}

const recordOf = ({ handover, ...r }: HexRecord): AuditRecord => ({
  ...r,
  bytes: fromHex(r.bytes),
  prevMac: fromHex(r.prevMac),
  mac: fromHex(r.mac),
  ...(handover && { handover: { macKeyId: handover.macKeyId, mac: fromHex(handover.mac) } }),
});

function audit(crypto: Crypto): void {
  it('verifies every chain on record that is whole, and says where another is not', async () => {
    let judged = 0;
    for (const group of auditVectors.testGroups as unknown as { origin: string; keys: { keyId: string; key: string }[]; tests: AuditVector[] }[]) {
      const macKeys = new Map<string, AuditMacKey>();
      for (const { keyId, key } of group.keys) macKeys.set(keyId, await webCryptoMacKey({ keyId, key: fromHex(key), crypto }));
      for (const { tcId, result, from, records, invalidSeq } of group.tests) {
        const position = from === undefined ? chainStart() : { ...from, prevMac: fromHex(from.prevMac) };
        const given = records.map(recordOf);
        const verified = verifyRecords(given, { origin: group.origin, keys: macKeys, from: position });
        const last = given.at(-1);
        if (result === 'valid') expect(await verified, `tcId ${tcId}`).toEqual(last === undefined ? position : chainAfter(last));
        else {
          const detail = expect.stringMatching(new RegExp(`^seq ${invalidSeq}: `)) as string;
          await expect(verified, `tcId ${tcId}`).rejects.toMatchObject({ code: 'audit_record_invalid', detail });
        }
        judged += 1;
      }
    }
    expect(judged).toBe(auditVectors.numberOfTests);
  });

  it('seals a chain that verifies, and not with a bit changed', async () => {
    const key = await webCryptoMacKey({ keyId: 'k', key: webCryptoRandom(crypto).bytes(32), crypto });
    const entries = [1, 2, 3].map((n) => ({ action: 'a', outcome: 'success' as const, actor: 'system', n }));
    const { seq, prevMac } = chainStart();
    const records = await sealEntries({ origin: 'o', seq, prevMac, entries, nowMs: 1_767_225_600_000, key });
    const keysById = new Map([['k', key]]);
    expect(await verifyRecords(records, { origin: 'o', keys: keysById })).toEqual(chainAfter(records[2]!));
    const forged = records.map((record, i) => (i === 1 ? { ...record, bytes: record.bytes.map((byte, at) => (at === 12 ? byte ^ 1 : byte)) } : record));
    await expect(verifyRecords(forged, { origin: 'o', keys: keysById })).rejects.toMatchObject({ detail: 'seq 1: the MAC is wrong' });
  });
}
